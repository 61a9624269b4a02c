"""What tests of downloads share: empty caches, and a machine without a connection."""

import socket

import pytest
from huggingface_hub import constants


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Empty caches of the hub and of torch."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def offline(caches, monkeypatch):
    """No name resolves: what a machine without a connection sees."""

    def fail(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture
def no_sockets(caches, monkeypatch):
    """Whoever asks for a connection fails, and is told here."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("no connection is to be asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert asked == []
