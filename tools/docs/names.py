"""Which names are public, and which of them a page of the reference lists.

Read from source text, as mkdocstrings does: PyTorch need not be loaded to build a page.
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = "burst", "bpt", "reports"
_DISTINCT = re.compile(r"[a-z0-9]_[a-z0-9]|[a-z][A-Z]|^[A-Z]\w*\.")
_LISTED = re.compile(r"^::: *(\S+)", re.MULTILINE)


def public_names(package: str, root: Path = ROOT) -> dict[str, str]:
    """Each name of a package's `__all__` -> where it is defined: "survey" -> "burst.survey.survey".

    What the package defines itself is its own place.
    """
    tree = ast.parse((root / package / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return {name: imported.get(name, f"{package}.{name}") for name in names}


def listed_names(markdown: str) -> list[str]:
    """What a page lists: every "::: package.name" of it."""
    return _LISTED.findall(markdown)


def complaints(public: Mapping[str, str], pages: Mapping[str, str]) -> list[str]:
    """What is wrong with a reference, a sentence each; none if every name is listed once.

    What public classes share may be listed too, as "package.module.Class".

    Args:
        public: "package.name" -> where it is defined.
        pages: path -> Markdown of each page of the reference.
    """
    counts = Counter(name for text in pages.values() for name in listed_names(text))
    missing = [f"no page of the reference lists {name}" for name in public if name not in counts]
    twice = [f"the reference lists {name} {n} times" for name, n in counts.items() if n > 1]
    unknown = [
        f"the reference lists {name}, which is not public"
        for name in counts
        if name not in public and name.count(".") == 1
    ]
    return missing + twice + unknown


def all_public_names(root: Path = ROOT) -> dict[str, str]:
    """The same for all packages, under "package.name"."""
    return {
        f"{package}.{name}": place
        for package in PACKAGES
        for name, place in public_names(package, root).items()
    }


def meanings(code: str, package: str | None) -> list[str]:
    """What a name in a text may mean, as "package.name", the likeliest first.

    Args:
        code: "burst.survey", "burst.kernels.choose", or without a package "Survey.load".
        package: whose docstring it stands in; None elsewhere, where all names have their package.
    """
    first, *others = code.split(".")
    if first in PACKAGES:
        return [f"{first}.{other}" for other in others]
    if package is None or not _DISTINCT.search(code):
        return []
    return [f"{one}.{first}" for one in (package, *PACKAGES)]


def resolve_shadowed(markdown: str, public: Mapping[str, str], root: Path = ROOT) -> str:
    """Say where a name is defined if a module has the same name, which would be shown in its place.

    `burst.survey` is a function for who imports it, and a file for who reads source text.
    """

    def expand(found: re.Match[str]) -> str:
        name = found[1]
        path = root / name.replace(".", "/")
        if name not in public or not (path.is_dir() or path.with_suffix(".py").exists()):
            return found[0]
        options = f"    options:\n      heading: {name}\n      toc_label: {name.split('.')[1]}"
        return f"[](){{#{name}}}\n\n::: {public[name]}\n{options}"

    return _LISTED.sub(expand, markdown)
