"""Notebooks as Markdown: with outputs where `python -m tools.docs.notebooks` has run them.

The notebooks of the repository hold no outputs; what ran lies in build/notebooks, which `make docs`
makes. Without it pages have the text and code alone.
"""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "docs" / "notebooks"
EXECUTED = ROOT / "build" / "notebooks"
SECONDS = 300  # a cell may take


def read_notebook(path: Path, executed: Path = EXECUTED) -> dict[str, Any]:
    """A notebook, with its outputs if the same cells have been run."""
    notebook: dict[str, Any] = json.loads(path.read_text())
    if (ran := executed / path.name).exists():
        with_outputs: dict[str, Any] = json.loads(ran.read_text())
        if _sources(with_outputs) == _sources(notebook):
            return with_outputs
    return notebook


def notebook_page(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures.

    Args:
        notebook: as nbformat 4 stores it.
        name: of its file, without suffix.

    Returns:
        The page, and the pictures' bytes by path relative to the page.
    """
    pictures: dict[str, bytes] = {}
    parts = []
    for cell in notebook["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                parts += _output(output, f"{name}_files", pictures)
        else:
            parts.append(source)
    title, text = "\n\n".join(parts).split("\n", 1)
    link = f'<a href="{name}.ipynb" download>Download this notebook</a>'
    return f"{title}\n\n{link}\n{text}\n", pictures


def execute(path: Path, out: Path) -> None:
    """Run a notebook in an empty folder, and write it with its outputs."""
    import tempfile

    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(nbformat.writes(notebook))


def _output(output: dict[str, Any], folder: str, pictures: dict[str, bytes]) -> Iterator[str]:
    if output.get("name") == "stderr":
        return
    data = output.get("data", {})
    if "image/png" in data:
        path = f"{folder}/{len(pictures)}.png"
        pictures[path] = base64.b64decode(_text(data["image/png"]))
        yield f"![Figure {len(pictures)} of this notebook]({path})"
    elif "text/html" in data:
        html = "\n".join(line for line in _text(data["text/html"]).splitlines() if line.strip())
        yield f'<div class="output">\n{html}\n</div>'
    elif text := _text(data.get("text/plain", output.get("text", ""))).rstrip():
        yield f"```text\n{text}\n```"


def _sources(notebook: dict[str, Any]) -> list[str]:
    return [_text(cell["source"]) for cell in notebook["cells"]]


def _text(lines: str | list[str]) -> str:
    """Text, which a notebook stores as it is or as lines."""
    return lines if isinstance(lines, str) else "".join(lines)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        execute(path, EXECUTED / path.name)
