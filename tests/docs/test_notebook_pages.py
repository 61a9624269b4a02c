"""A notebook's page has its text, its code, and what came out where it has been run."""

import base64
import json

from tools.docs.notebooks import notebook_page, read_notebook

SOURCES = ["# A title\n\nText.", "1 + 1"]


def notebook(outputs=()):
    text, code = SOURCES
    cells = [
        {"cell_type": "markdown", "source": text},
        {"cell_type": "code", "source": code, "outputs": list(outputs)},
    ]
    return {"cells": cells}


def test_a_page_has_text_code_and_outputs():
    png = base64.b64encode(b"picture").decode()
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]},
        {"output_type": "stream", "name": "stderr", "text": "a warning of this machine"},
        {"output_type": "display_data", "data": {"image/png": png, "text/plain": "<Figure>"}},
        {"output_type": "execute_result", "data": {"text/html": "<p>\n\n2</p>", "text/plain": "2"}},
    ]
    page, pictures = notebook_page(notebook(outputs), "sum")
    assert page == (
        '# A title\n\n<a href="sum.ipynb" download>Download this notebook</a>\n\nText.\n\n'
        "```python\n1 + 1\n```\n\n```text\na\nb\n```\n\n"
        "![Figure 1 of this notebook](sum_files/0.png)\n\n"
        '<div class="output">\n<p>\n2</p>\n</div>\n'
    )
    assert pictures == {"sum_files/0.png": b"picture"}


def test_outputs_are_shown_only_of_the_same_cells(tmp_path):
    path = tmp_path / "sum.ipynb"
    path.write_text(json.dumps(notebook()))
    ran = notebook([{"output_type": "stream", "name": "stdout", "text": "2"}])
    (tmp_path / "ran").mkdir()
    (tmp_path / "ran" / "sum.ipynb").write_text(json.dumps(ran))
    assert read_notebook(path, tmp_path / "ran") == ran
    assert read_notebook(path, tmp_path / "none") == notebook()
    ran["cells"][1]["source"] = "1 + 2"
    (tmp_path / "ran" / "sum.ipynb").write_text(json.dumps(ran))
    assert read_notebook(path, tmp_path / "ran") == notebook()
