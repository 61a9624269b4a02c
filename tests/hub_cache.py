"""Files of repositories as the hub's cache keeps them."""

from pathlib import Path

COMMIT = "0123abc"


def put_in_hub_cache(root: Path, repository: str, filename: str, data: bytes) -> Path:
    """A file of a repository's main branch, in the cache `root`/hub of the fixture `caches`."""
    folder = root / "hub" / f"models--{repository.replace('/', '--')}"
    file = folder / "snapshots" / COMMIT / filename
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return file
