import hashlib
import http.server
import threading
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import pytest
from hub_cache import put_in_hub_cache
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError

from burst import hub
from burst.errors import CheckpointError


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """An empty cache of torch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_files_of_one_name_at_two_urls_are_cached_apart(caches):
    places = {hub.url_cache(f"https://example.org/{x}/vit_2b14.pt") for x in ("mae", "maws")}
    assert len(places) == 2


def test_a_url_is_fetched_once(caches):
    (caches / "a.bin").write_bytes(b"weights")
    first = hub.fetch_url((caches / "a.bin").as_uri())
    (caches / "a.bin").unlink()
    assert hub.fetch_url((caches / "a.bin").as_uri()) == first
    assert first.read_bytes() == b"weights"


def test_of_two_at_once_one_downloads_and_the_other_waits(caches, monkeypatch):
    (caches / "a.bin").write_bytes(b"weights")
    copy, waits, copied = hub._copy, threading.Event(), []

    def slow(*args):
        copied.append(args)
        assert waits.wait(20)
        return copy(*args)

    def note(line, *_):
        if line.startswith("waiting"):
            waits.set()

    monkeypatch.setattr(hub, "_copy", slow)
    monkeypatch.setattr(hub.logger, "info", note)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(hub.fetch_url, (caches / "a.bin").as_uri()) for _ in range(2)]
    assert [one.result().read_bytes() for one in both] == [b"weights"] * 2
    assert len(copied) == 1


def test_a_download_of_another_md5_is_not_kept(caches):
    (caches / "a.bin").write_bytes(b"weights")
    url = (caches / "a.bin").as_uri()
    with pytest.raises(CheckpointError, match=r"has MD5 \w+, but 8cad7c was published"):
        hub.fetch_url(url, md5="8cad7c")
    assert not list(hub.url_cache(url).parent.iterdir())


def test_a_download_of_the_published_md5_is_kept(caches):
    (caches / "a.bin").write_bytes(b"weights")
    digest = hashlib.md5(b"weights").hexdigest()
    assert hub.fetch_url((caches / "a.bin").as_uri(), md5=digest[:6]).is_file()


class Interrupted(http.server.BaseHTTPRequestHandler):
    """Promises a hundred bytes and sends seven."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"weights")

    def log_message(self, *arguments):
        pass


def test_a_download_that_breaks_off_is_not_kept(caches):
    with http.server.HTTPServer(("127.0.0.1", 0), Interrupted) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/a.bin"
        with pytest.raises(CheckpointError, match="broke off"):
            hub.fetch_url(url)
        thread.join()
    assert not list(hub.url_cache(url).parent.iterdir())


def test_a_file_of_torch_s_hub_is_kept_under_the_name_that_torch_gives_it(caches):
    digest = hashlib.sha256(b"weights").hexdigest()
    (caches / f"vit-{digest[:8]}.pth").write_bytes(b"weights")
    url = (caches / f"vit-{digest[:8]}.pth").as_uri()
    assert hub.torch_hub_file(url) is None
    file = hub.fetch_torch_hub_file(url)
    assert file == hub.torch_cache() / f"vit-{digest[:8]}.pth" == hub.torch_hub_file(url)
    assert file.read_bytes() == b"weights"


def test_a_file_that_is_not_what_its_name_promises_is_not_kept(caches):
    (caches / "vit-0123abcd.pth").write_bytes(b"weights")
    url = (caches / "vit-0123abcd.pth").as_uri()
    with pytest.raises(CheckpointError, match=r"has SHA256 \w+, but 0123abcd was published"):
        hub.fetch_torch_hub_file(url)
    assert not list(hub.torch_cache().iterdir())


@pytest.fixture
def repository(caches, monkeypatch):
    """A hub with one repository of two files, and a note of what it was asked for."""
    asked = []
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(caches / "hub"))
    files = {"pytorch_model.bin", "tokenizer.json"}

    def download(name, filename, *, revision, local_files_only):
        asked.append(filename)
        if filename not in files:
            raise Absent("no such file")
        return str(put_in_hub_cache(caches, name, filename, b"weights"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: sorted(files))
    return asked


class Absent(EntryNotFoundError):
    """What the client says of a repository without such a file; its own asks for a response."""

    def __init__(self, message):
        Exception.__init__(self, message)


def test_of_several_names_the_first_that_a_repository_has_is_fetched(repository):
    file = hub.fetch_first_hub_file("org/name", hub.WEIGHT_FILES)
    assert (file.name, file.read_bytes()) == ("pytorch_model.bin", b"weights")
    assert repository == ["model.safetensors", "pytorch_model.bin"]
    assert hub.fetch_first_hub_file("org/name", hub.WEIGHT_FILES) == file
    assert len(repository) == 2  # what is in the cache is not asked for again


def test_what_may_be_missing_is_fetched_where_it_is(repository, caches):
    hub.fetch_those_there("org/name", ["vocab.txt", "tokenizer.json"])
    assert repository == ["tokenizer.json"]


def test_what_may_be_missing_is_not_asked_for_without_a_connection(repository, monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    hub.fetch_those_there("org/name", ["tokenizer.json"])
    assert repository == []
