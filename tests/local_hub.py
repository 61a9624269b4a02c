"""The client of the hub, pointed to one on this machine."""

import contextlib
import os
import time

import huggingface_hub
from huggingface_hub import constants

TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"


@contextlib.contextmanager
def client_of(hub, cache, patch, *, token=None):
    """All of the client in this process asks `hub`, keeps files in `cache`, and never waits."""
    patch.setattr(constants, "ENDPOINT", hub.url)
    for module in (constants, huggingface_hub.file_download):  # old clients keep it in both
        patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + TEMPLATE, raising=False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.delenv("HF_TOKEN", raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        patch.delenv(variable, raising=False)
        patch.delenv(variable.upper(), raising=False)
    if token:
        patch.setenv("HF_TOKEN", token)
    patch.setattr(time, "sleep", lambda _: None)
    yield hub


def environment_of(hub, cache, *, token=None):
    """Variables that point another process to `hub`."""
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return kept | own | ({"HF_TOKEN": token} if token else {}) | {"HF_HUB_OFFLINE": "0"}
