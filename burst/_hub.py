"""Weight files that are not given: found in the caches without a connection, or fetched once."""

import contextlib
import hashlib
import logging
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import IO

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from burst.errors import CheckpointError
from burst.files import make_folder, write_atomically
from burst.lock import one_at_a_time

logger = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds without an answer
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# The base of whatever transport library huggingface_hub is built on; it has changed twice.
TRANSPORT_ERROR: type[BaseException] = HfHubHTTPError.__bases__[0]
FAILURES: tuple[type[BaseException], ...] = (
    *(OSError, HTTPException, TRANSPORT_ERROR, EntryNotFoundError, HFValidationError),
)


def hub_page(repository: str) -> str:
    """Where a browser finds a hub repository (`ORG/NAME`, or `ORG/NAME@REVISION`)."""
    return f"{constants.ENDPOINT}/{repository.partition('@')[0]}"


def hub_link(repository: str, filename: str = WEIGHT_FILES[0]) -> str:
    """Where a browser finds a file of a hub repository."""
    revision = repository.partition("@")[2] or "main"
    return f"{hub_page(repository)}/resolve/{revision}/{filename}"


def cached_hub_file(repository: str, filename: str = WEIGHT_FILES[0]) -> Path | None:
    """A hub file in the local cache, without a connection."""
    name, _, revision = repository.partition("@")
    found = huggingface_hub.try_to_load_from_cache(name, filename, revision=revision or None)
    return Path(found) if isinstance(found, str) else None


def fetch_hub_file(repository: str, filename: str = WEIGHT_FILES[0]) -> Path:
    """A hub file, from the local cache or else downloaded into it.

    Raises:
        OSError or another of FAILURES: it cannot be had; see `explained`.
    """
    cached = cached_hub_file(repository, filename)
    if cached is not None:
        return cached
    name, _, revision = repository.partition("@")
    # Spares the user the client's retries (23 seconds a file) where nothing can be reached.
    offline = not hub_answers()
    return Path(
        huggingface_hub.hf_hub_download(
            name, filename, revision=revision or None, local_files_only=offline
        )
    )


def fetch_first_hub_file(repository: str, filenames: Iterable[str]) -> Path:
    """The first of several files that a hub repository has; one in the cache before any other.

    Raises:
        OSError or another of FAILURES: none can be had; see `explained`.
    """
    names = list(filenames)
    found = (cached_hub_file(repository, name) for name in names)
    if cached := next((file for file in found if file), None):
        return cached
    for name in names[:-1]:
        try:
            return fetch_hub_file(repository, name)
        except EntryNotFoundError as error:
            if isinstance(error, FileNotFoundError):  # not on this disk: the hub was not asked
                raise
    return fetch_hub_file(repository, names[-1])


def fetch_those_there(repository: str, filenames: Iterable[str]) -> None:
    """Put those of some files that a hub repository has into the cache; none, if it is not there.

    Raises:
        OSError or another of FAILURES: a download broke off; see `explained`.
    """
    if not hub_answers():
        return
    name, _, revision = repository.partition("@")
    there = set(huggingface_hub.list_repo_files(name, revision=revision or None))
    for filename in filenames:
        if filename in there:
            fetch_hub_file(repository, filename)


def pinned(repository: str, snapshot: Path) -> str:
    """The repository at the commit of a snapshot of it in the cache."""
    return f"{repository.partition('@')[0]}@{snapshot.name}"


def url_cache(url: str) -> Path:
    """Where the file of a URL is kept: torch's folder, under a name that the whole URL decides.

    Different files are published under one name, so the name alone must not decide.
    """
    key = hashlib.sha256(url.encode()).hexdigest()[:12]
    return torch_cache() / f"{key}-{url.rpartition('/')[2]}"


def torch_cache() -> Path:
    """The folder in which torch.hub keeps checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def torch_hub_file(url: str) -> Path | None:
    """Where torch.hub has put the file of a URL, if it has."""
    file = torch_cache() / url.rpartition("/")[2]
    return file if file.is_file() else None


def fetch_torch_hub_file(url: str) -> Path:
    """The file of a URL where torch.hub keeps it, from there or else downloaded.

    Its name must hold the beginning of its SHA-256 behind the last dash, as torch's own files do.

    Raises:
        CheckpointError: the download broke off, or is not the published file.
        OSError or another of FAILURES: see `fetch_url`.
    """
    found = torch_hub_file(url)
    if found is not None:
        return found
    target = torch_cache() / url.rpartition("/")[2]
    _fetch(url, target, "sha256", target.stem.rpartition("-")[2])
    return target


def fetch_url(url: str, *, md5: str | None = None) -> Path:
    """The file of a URL, from the cache or else downloaded, whole, into it; by one process.

    Args:
        url: what to fetch.
        md5: what its MD5, in hexadecimal, must begin with.

    Raises:
        CheckpointError: the download broke off, or is not the published file.
        OutputError: the cache cannot be written.
        OSError or another of FAILURES: there is no connection, or no such file; see `explained`.
    """
    target = url_cache(url)
    _fetch(url, target, "md5", md5)
    return target


def _fetch(url: str, target: Path, kind: str, beginning: str | None) -> None:
    if target.is_file():
        return
    make_folder(target.parent)
    with one_at_a_time(target, "downloads", say=logger.info):
        if not target.is_file():
            logger.info("downloading %s to %s", url, target)
            _download(url, target, kind, beginning)


def _download(url: str, target: Path, kind: str, beginning: str | None) -> None:
    """`kind` of digest, and what it must begin with, if that was published."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        expected = response.headers.get("Content-Length")
        with write_atomically(target) as temporary:
            size, digest = _copy(response, temporary, url, kind)
            if expected and size != int(expected):
                raise CheckpointError(f"download of {url} broke off at {size} of {expected} bytes")
            if beginning and not digest.startswith(beginning):
                raise CheckpointError(
                    f"{url} has {kind.upper()} {digest}, but {beginning} was published; not kept"
                )


def _copy(response: IO[bytes], temporary: Path, url: str, kind: str) -> tuple[int, str]:
    digest = hashlib.new(kind, usedforsecurity=False)
    size = 0
    with temporary.open("wb") as stream:
        while chunk := _read(response, url):
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _read(response: IO[bytes], url: str) -> bytes:
    try:
        return response.read(1 << 20)
    except FAILURES as error:  # told apart here from a disk that is full
        raise CheckpointError(f"download of {url} broke off ({why(error)}); try again") from error


def hub_answers() -> bool:
    """Whether the hub may be asked and answers; one request, unless offline mode forbids it."""
    return not constants.HF_HUB_OFFLINE and _reachable(constants.ENDPOINT)


def _reachable(url: str) -> bool:
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return True
    except (urllib.error.HTTPError, ValueError):
        return True  # an answer is an answer; what is no URL is for the client to refuse
    except (OSError, HTTPException) as error:
        # Certificates are not judged here: the hub client brings its own.
        return "CERTIFICATE" in str(error)


@contextlib.contextmanager
def explained(name: str, advice: str) -> Iterator[None]:
    """Turn every way in which a download fails into one line.

    Args:
        name: the backbone that was asked for.
        advice: what to do instead.

    Raises:
        CheckpointError: in place of any of FAILURES.
    """
    try:
        yield
    except FAILURES as error:
        raise CheckpointError(
            f"the weights of {name} are not on disk and cannot be downloaded ({why(error)}); "
            f"{advice}"
        ) from error


def why(error: BaseException) -> str:
    """One line: the reason that a user can act on."""
    if isinstance(error, GatedRepoError):
        return "the repository asks for a login: `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or it is private"
    if isinstance(error, HFValidationError):
        return "this is no name of a repository, expected ORG/NAME"
    if isinstance(error, OfflineModeIsEnabled) or (
        isinstance(error, EntryNotFoundError) and isinstance(error, FileNotFoundError)
    ):
        return "no connection to the hub, or offline mode"
    if isinstance(error, EntryNotFoundError):
        return "the repository has no such file"
    reason = getattr(error, "reason", None) or error
    return (str(reason).splitlines() or [type(error).__name__])[0]
