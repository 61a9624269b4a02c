"""Weight files that are not given: found in the caches without a connection, or fetched once."""

import contextlib
import hashlib
import inspect
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Set
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

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
    RevisionNotFoundError,
)

from burst.downloads import Told, bar_class, listener
from burst.errors import CheckpointError
from burst.files import make_folder, sha256_of, write_atomically
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
    """A hub file, from the local cache or else downloaded into it, and checked.

    Raises:
        CheckpointError: what came has another SHA-256 than the hub says.
        OSError or another of FAILURES: it cannot be had; see `explained`.
    """
    cached = cached_hub_file(repository, filename)
    if cached is not None:
        return cached
    name, _, revision = repository.partition("@")
    # Spares the user the client's retries (23 seconds a file) where nothing can be reached.
    offline = not hub_answers()
    file = Path(
        huggingface_hub.hf_hub_download(
            name,
            filename,
            revision=revision or None,
            local_files_only=offline,
            **_telling(f"{name} {filename}"),
        )
    )
    _check_bytes(file, f"{name} {filename}")
    return file


def client_options() -> Set[str]:
    """What the client's downloads can be told; newer ones can be told more."""
    return inspect.signature(huggingface_hub.hf_hub_download).parameters.keys()


def _telling(what: str) -> dict[str, Any]:
    """What lets the client tell of a download, where somebody listens."""
    told, cache = listener(), Path(constants.HF_HUB_CACHE)
    if told is None:
        return {}
    if "tqdm_class" in client_options():
        return {"tqdm_class": bar_class(what, cache)}
    if not what.endswith(".json"):
        told.say(f"downloading {what} to {cache}")  # and the client shows its bar, with the size
    return {}


def _check_bytes(file: Path, what: str) -> None:
    """Refuse what came with other bytes than the hub names; the client compares sizes alone.

    Its cache keeps a large file under the SHA-256 that the hub gives as its ETag.
    """
    if not file.is_symlink():
        return
    blob = file.parent / file.readlink()
    if re.fullmatch("[0-9a-f]{64}", blob.name) and (found := sha256_of(blob)) != blob.name:
        file.unlink()
        blob.unlink()
        raise CheckpointError(
            f"{what} came with SHA-256 {found}, and the hub says {blob.name}; it was removed, "
            "try again"
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
        told = Told(url, int(expected or 0), target)
        with write_atomically(target) as temporary:
            size, digest = _copy(response, temporary, url, kind, told)
            if expected and size != int(expected):
                raise CheckpointError(f"download of {url} broke off at {size} of {expected} bytes")
            if beginning and not digest.startswith(beginning):
                raise CheckpointError(
                    f"{url} has {kind.upper()} {digest}, but {beginning} was published; not kept"
                )


def _copy(response: IO[bytes], temporary: Path, url: str, kind: str, told: Told) -> tuple[int, str]:
    digest = hashlib.new(kind, usedforsecurity=False)
    size = 0
    with temporary.open("wb") as stream:
        while chunk := _read(response, url):
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            told.add(len(chunk))
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


# Of the client's errors, the most special first.
REASONS: dict[type[BaseException], str] = {
    GatedRepoError: "the repository wants a login and its terms to be accepted: `hf auth login`",
    RepositoryNotFoundError: "the hub has no such repository, or it is private and wants a login",
    RevisionNotFoundError: "the repository has no such revision",
    HFValidationError: "this is no name of a repository, expected ORG/NAME",
    OfflineModeIsEnabled: "no connection to the hub, or offline mode",
}


def why(error: BaseException) -> str:
    """One line: the reason that a user can act on."""
    for kind, reason in REASONS.items():
        if isinstance(error, kind):
            return reason
    if status := _status(error):
        return status
    if isinstance(error, EntryNotFoundError):
        offline = isinstance(error, FileNotFoundError)
        return REASONS[OfflineModeIsEnabled] if offline else "the repository has no such file"
    if type(error) is RuntimeError and error.__cause__:  # of a thread of the client's
        return why(error.__cause__)
    if "IncompleteRead" in str(error):
        return "the connection broke off"
    said = getattr(error, "reason", None) or error
    return (str(said).strip().splitlines() or [type(error).__name__])[0]


def _status(error: BaseException) -> str | None:
    """What the hub answered, itself or behind an error; None where the line below says more."""
    response = getattr(error, "response", None)
    if response is None:  # the client says of a hub that is down that the file is not on disk
        response = getattr(error.__cause__, "response", None)
    code = getattr(response, "status_code", None)
    if code == 401:
        return "the hub wants a login: `hf auth login`, or a token in HF_TOKEN"
    if code == 403:
        return "the hub forbids it (403): the token may not do this, or not there"
    if code is not None and (code == 429 or code >= 500):
        return f"the hub answers {code}; try again later"
    return None
