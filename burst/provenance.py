"""What a result must say of how it was made."""

import importlib.metadata
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

DISTRIBUTION = "attention-burstiness"
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "boost-histogram")
_version = cache(importlib.metadata.version)  # a search asks at each of its trainings


def version() -> str:
    """This library's version; "not installed" where its distribution is not."""
    try:
        return _version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def command_line() -> list[str]:
    """What was typed to start this process, without the program's folder; `python -m` as such."""
    program = Path(sys.argv[0])
    module = program.name == "__main__.py"
    start = ["python", "-m", program.parent.name] if module else [program.name]
    return [*start, *sys.argv[1:]]


def provenance(*libraries: str) -> dict[str, Any]:
    """Time (UTC, ISO 8601), command line, versions and machine, as plain JSON-able data.

    Args:
        *libraries: distributions that were used beside those that always are.

    Raises:
        importlib.metadata.PackageNotFoundError: one of them is not installed.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": {
            DISTRIBUTION: version(),
            "python": platform.python_version(),
            **{name: _version(name) for name in (*_PACKAGES, *libraries)},
        },
        "machine": f"{platform.system()} {platform.machine()}",
    }
