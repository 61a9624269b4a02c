"""Links of a page to files of the repository outside docs/: those files come with the site.

On GitHub `docs/counting.md` links to `../benchmarks/README.md`; a site is made of docs/ alone.
"""

import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = "repository"  # where they lie in the site, under their paths
_LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s#]+)", re.MULTILINE)


def in_site(path: str) -> str:
    """A file's path in the repository -> its path in the site's sources."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{PLACE}/{path}"


def notebook_in_site(path: str) -> str:
    """A notebook -> the page that shows it; any other path as it is."""
    return path.removesuffix(".ipynb") + ".md" if path.endswith(".ipynb") else path


def in_repository(path: str) -> str:
    """The way back."""
    return path.removeprefix(f"{PLACE}/") if path.startswith(f"{PLACE}/") else f"docs/{path}"


def relink(markdown: str, page: str) -> str:
    """Links between docs/ and the rest, as they are in the site; others as they were.

    Args:
        markdown: of a file of the repository.
        page: its path in the site's sources.
    """

    def move(found: re.Match[str]) -> str:
        target = _target(found[2], page)
        if target is None:
            return found[0]
        place = notebook_in_site(in_site(target))
        return found[1] + posixpath.relpath(place, posixpath.dirname(page) or ".")

    return _LINK.sub(move, markdown)


def carried_files(pages: Iterable[str], root: Path = ROOT) -> list[str]:
    """Files outside docs/ that pages link to, and that those link to in turn, by path.

    Args:
        pages: paths in the site's sources; those outside docs/ are carried too.
        root: of the repository.
    """
    seen: set[str] = set()
    ahead = list(pages)
    while ahead:
        page = ahead.pop()
        path = root / in_repository(page)
        if page in seen or not path.is_file():
            continue
        seen.add(page)
        if path.suffix == ".md":
            links = (_target(found[2], page) for found in _LINK.finditer(path.read_text()))
            ahead += [in_site(link) for link in links if link is not None]
    return sorted(in_repository(page) for page in seen if page.startswith(f"{PLACE}/"))


def _target(link: str, page: str) -> str | None:
    """What a link names, as a path in the repository; None for what is no file of it."""
    if ":" in link or link.startswith("/"):
        return None
    folder = posixpath.dirname(in_repository(page))
    target = posixpath.normpath(posixpath.join(folder, link))
    return None if target.startswith("..") else target
