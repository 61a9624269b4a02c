"""The notebooks run without a network, with fewer images, epochs and blocks than they have.

Of the detectors any scenes are drawn where none is chosen: so little training may find nothing.
"""

from pathlib import Path

import pytest
from colours import write_images

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ["detection", "evaluate_prompt", "histograms", "whitening"]
LESS = {
    "detection": {
        "range(1, 41)": "range(1, 9)",
        'schedule="3"': 'schedule="1"',
        # After so few steps no image may tell the two detectors apart.
        "matching, choice.scenes,": "matching, choice.scenes or matching.scenes,",
    },
    "evaluate_prompt": {'dataset="digits"': 'dataset="folder:IMAGES"'},
    "histograms": {
        "num_images=40": "num_images=8",
        "per_head=True": "per_head=True, blocks=(0, 1)",
    },
    "whitening": {
        "num_images=100": "num_images=16",
        "chosen_blocks(whitening)": "chosen_blocks(whitening)[:1]",
    },
}


def test_no_notebook_is_forgotten():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The cells of each notebook, with outputs: of one kernel, which is emptied before each."""
    nbformat, nbclient = (pytest.importorskip(one) for one in ("nbformat", "nbclient"))
    read = {name: nbformat.read(FOLDER / f"{name}.ipynb", as_version=4) for name in NAMES}
    images = write_images(
        tmp_path_factory.mktemp("images"), counts={"train": 20, "val": 4, "test": 4}
    )
    for name, notebook in read.items():
        for told, less in LESS[name].items():
            (cell,) = (one for one in notebook.cells if told in one.source)
            assert cell.source.count(told) == 1
            cell.source = cell.source.replace(told, less.replace("IMAGES", str(images)))
    cells = []
    for notebook in read.values():
        assert not any(cell.get("outputs") for cell in notebook.cells)
        cells += [nbformat.v4.new_code_cell("%reset -f"), *notebook.cells]
    whole = nbformat.v4.new_notebook(cells=cells, metadata=read[NAMES[0]].metadata)
    resources = {"metadata": {"path": str(tmp_path_factory.mktemp("notebooks"))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        nbclient.NotebookClient(
            whole, timeout=120, resources=resources, allow_errors=True
        ).execute()
    return {name: notebook.cells for name, notebook in read.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own start
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, executed):
    code = [cell for cell in executed[name] if cell.cell_type == "code"]
    outputs = [one for cell in code for one in cell.outputs]
    assert [one for one in outputs if one.output_type == "error"] == []
    assert all(cell.execution_count for cell in code)
    assert any("image/png" in one.get("data", {}) for one in outputs)
