"""What many trainings came to: search.json and validate.json, read back."""

from pathlib import Path
from typing import Any

from bpt.run_folder import read_json
from burst.errors import CheckpointError

# By kind what is read in any case: objects, or lists of objects.
PARTS = {"bpt search 1": ("methods",), "bpt validate 1": ("whitening", "benchmarks", "recipes")}


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """What many trainings came to: search.json or validate.json.

    Args:
        path: of the file.
        kind: as its `kind` says, such as "bpt search 1", the number being that of its form.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another kind.
    """
    command = kind.rpartition(" ")[0]
    try:
        content = read_json(path)
    except OSError as error:
        raise CheckpointError(
            f"{path.parent} holds no readable {path.name}; name a folder that `{command}` wrote"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; delete it, and the same `{command}` writes it anew"
        ) from error
    if content.get("kind") != kind or not all(_is_part(content.get(name)) for name in PARTS[kind]):
        raise CheckpointError(f"{path} is not what `{command}` of this version writes")
    return content


def _is_part(part: object) -> bool:
    """Whether it is an object, or a list of objects."""
    return all(isinstance(one, dict) for one in (part if isinstance(part, list) else [part]))
