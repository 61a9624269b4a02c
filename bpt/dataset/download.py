"""A file from the web: resumed where it broke off, checked, there as a whole or not at all."""

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpt.errors import DownloadError
from burst.archive import reason
from burst.errors import OutputError
from burst.files import make_folder, write_atomically
from burst.lock import one_at_a_time
from burst.progress import Progress, Say

CHUNK = 1 << 20  # bytes
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 5  # in a row without a byte
AGENT = "bpt-datasets (Python urllib)"
TRY_AGAIN = (408, 429, 500, 502, 503, 504)
NO_SUCH_RANGE = 416
UNREACHABLE = (
    *(urllib.error.URLError, http.client.HTTPException),
    *(TimeoutError, ConnectionError),
)


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web.

    Attributes:
        url: http or https.
        name: what it is called here.
        md5: of its bytes, in hex; None where nobody published it.
    """

    url: str
    name: str
    md5: str | None = None


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
    pause: float = 1.0,
) -> Path:
    """Download a file, unless it is there already.

    What came before a connection broke off stays in .NAME.part, and the next attempt, or the next
    call, goes on from there with a Range request; from the start if the server ignores it or its
    file is another one by now. Ends with an error after five attempts in a row without a byte. Of
    several processes one downloads, and the others wait for it.

    Args:
        file: what to get.
        folder: where to; made if it is missing.
        progress: called as progress(bytes done, bytes in all).
        say: called with a line before another attempt, and before waiting for another process.
        pause: seconds before the second attempt; twice as long before each that follows.

    Raises:
        DownloadError: the server refuses it, cannot be reached, or its bytes have another MD5.
        OutputError: the folder cannot be written, or the disk is full; what came stays.
    """
    target = folder / file.name
    if _is_there(file, target):
        return target
    make_folder(folder)
    with one_at_a_time(target, "downloads", say=say):
        if not _is_there(file, target):
            _download(file, target, progress, say, pause)
    return target


def _is_there(file: RemoteFile, target: Path) -> bool:
    return target.exists() and file.md5 in (None, _md5(target))


def _download(
    file: RemoteFile,
    target: Path,
    progress: Progress | None,
    say: Say | None,
    pause: float,
) -> None:
    part = _Part(file, target.with_name(f".{file.name}.part"))
    failures = 0
    while True:
        before = part.size
        try:
            part.fetch_rest(progress)
            break
        except _Broken as error:
            failures = 0 if part.size > before else failures + 1
            if failures >= ATTEMPTS:
                raise DownloadError(f"cannot download {file.url}: {error}") from error
            if say:
                say(f"{error}; trying again")
            time.sleep(pause * 2**failures)
    part.settle(target)


class _Broken(Exception):
    """An attempt failed in a way that another may not."""


class _Part:
    """A file that has come in part."""

    def __init__(self, file: RemoteFile, path: Path) -> None:
        self.file, self.path = file, path
        self.about = path.with_name(path.name + ".json")  # what the server said of it

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def settle(self, target: Path) -> None:
        """Check the whole and give it its name."""
        if self.file.md5 is not None and (found := _md5(self.path)) != self.file.md5:
            self.remove()
            raise DownloadError(
                f"{self.file.url} came with MD5 {found}, expected {self.file.md5}; it was removed"
            )
        self.path.replace(target)
        self.about.unlink(missing_ok=True)

    def fetch_rest(self, progress: Progress | None) -> None:
        """Ask for what is missing and append it."""
        known = self._known()
        start = self.size if known.get("validator") or self.file.md5 else 0
        headers = {"User-Agent": AGENT, "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if known.get("validator"):
                headers["If-Range"] = known["validator"]
        try:
            request = urllib.request.Request(self.file.url, headers=headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                self._receive(answer, start, progress)
        except urllib.error.HTTPError as error:
            self._refused(error, start, known)
        except UNREACHABLE as error:
            raise _Broken(reason(error)) from error

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self.about.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) and known.get("url") == self.file.url else {}

    def _refused(self, error: urllib.error.HTTPError, start: int, known: dict[str, Any]) -> None:
        if error.code == NO_SUCH_RANGE and start:
            if known.get("total") == start:
                return  # nothing was missing
            self.remove()
            raise _Broken("the server has no such part") from error
        if error.code in TRY_AGAIN:
            raise _Broken(f"the server answers {error.code} {error.reason}") from error
        raise DownloadError(
            f"cannot download {self.file.url}: the server answers {error.code} {error.reason}"
        ) from error

    def _receive(
        self, answer: http.client.HTTPResponse, start: int, progress: Progress | None
    ) -> None:
        partial = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if partial and _first_byte(answer) != start:
            self.remove()  # so that the next attempt asks for all of it
            raise _Broken(f"the server sends {answer.headers.get('Content-Range')!r}")
        done = start if partial else 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else 0
        validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if validator and validator.startswith("W/"):
            validator = None  # a weak one says nothing of single bytes
        try:
            with write_atomically(self.about) as temporary:
                about = {"url": self.file.url, "validator": validator, "total": total}
                temporary.write_text(json.dumps(about))
            with self.path.open("ab" if partial else "wb") as out:
                while chunk := _read(answer):
                    out.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done, max(total, done))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from error
        if total and done < total:
            raise _Broken(f"the connection broke off at byte {done:,} of {total:,}")


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes; what came of a broken connection is not lost."""
    try:
        return answer.read1(CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(f"the connection broke off: {reason(error)}") from error


def _first_byte(answer: http.client.HTTPResponse) -> int | None:
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
