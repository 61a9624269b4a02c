"""What README and docs tell to type exists, and their Python runs.

`code_blocks` says how a page marks what is not run, and what a block is given.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import typer
from code_blocks import Block, blocks, command_lines, commands_in_text
from matplotlib.figure import Figure
from PIL import Image

import bpt
import burst
import cli.bpt
import cli.burst
from burst.backbone import LIBRARIES
from cli._common import UsageError

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
PYTHON = {
    name: found
    for name, text in PAGES.items()
    if (found := [one for one in blocks(text) if one.language == "python"])
}
COMPLETION = "--install-completion", "--show-completion"  # Typer's own, where there is a shell
PROGRAMS = {"burst": cli.burst.app, "bpt": cli.bpt.app}


@pytest.fixture
def a_reader_s_folder(tmp_path, monkeypatch):
    """An empty folder but for photographs: photo.jpg, and photos/CLASS/IMAGE in two classes.

    Figures that are written there are empty: other tests draw them.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "draw_without_rendering", lambda _: None)
    monkeypatch.setattr(Figure, "savefig", _leave_empty)
    rng = np.random.default_rng(0)
    for i, name in enumerate(["cats", "dogs"] * 6):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.clip(rng.normal(100 + 50 * (i % 2), 40, (80, 96, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "photos" / "cats" / "0.jpg").read_bytes())
    return tmp_path


def _leave_empty(_: Figure, place: object, **__: object) -> None:
    if isinstance(place, str | Path):  # and not a buffer
        Path(place).touch()


@pytest.mark.slow
@pytest.mark.filterwarnings("default::burst.OmittedTermWarning")
@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs_in_order(page, a_reader_s_folder):
    names: dict[str, object] = {}
    for block in PYTHON[page]:
        if "not run" not in block.notes:
            before = compile(block.notes.get("before", ""), f"{page}, before", "exec")
            exec(before, names)
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page):
    for block in blocks(PAGES[page]):
        assert set(block.notes) <= {"not run", "before"}, block
        assert block.notes.get("not run", "a reason") != "", block


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_can_be_typed(page):
    for block in blocks(PAGES[page]):
        if block.is_shell:
            for words in command_lines(block.code):
                check(words)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_text_of_a_page_is_known(page):
    for words in commands_in_text(PAGES[page]):
        check(words, whole=False)


@pytest.mark.parametrize("page", PAGES)
def test_every_target_of_make_that_a_page_names_is_there(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "\n".join(block.code for block in blocks(PAGES[page]) if block.is_shell)
    named = re.findall(r"^make ([a-z]+)", code, re.MULTILINE)
    named += re.findall(r"`make ([a-z]+)`", PAGES[page])
    assert set(named) <= set(targets)


@pytest.mark.parametrize(
    "line", ["burst histgram", "bpt train digits --lrr 1", "burst map --seed a"]
)
def test_a_command_that_is_wrong_is_found(line):
    with pytest.raises(UsageError):
        check(line.split())


@pytest.mark.parametrize("line", ["burst spectrum --model mae_tny", "bpt train --method vqt"])
def test_a_value_that_is_wrong_is_found(line):
    with pytest.raises(burst.BurstError):
        check(line.split())


def test_a_block_has_its_comments_and_no_indent():
    notes = "  <!-- not run: slow -->\n  <!-- before:\n  x = 1\n  -->\n"
    page = f"- a\n\n{notes}  ```python\n  y\n\n    z\n  ```\n"
    assert blocks(page) == [
        Block(8, "python", "y\n\n  z\n", {"not run": "slow", "before": "x = 1"})
    ]


def test_commands_are_found_however_they_are_launched():
    shell = """$ burst models  # known
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 8 .venv/bin/burst map a.jpg \\
        --out "my maps" && python -m bpt datasets
    pip install burst
    """
    assert list(command_lines(shell)) == [
        ["burst", "models"],
        ["burst", "map", "a.jpg", "--out", "my maps"],
        ["bpt", "datasets"],
    ]


def test_every_file_that_the_readme_names_is_there():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES["README.md"]):
        assert (ROOT / link).exists(), link


def check(words, *, whole=True):
    """Parse a command line as the program does, without running it.

    In the text (not `whole`) arguments and values may be left out.

    Raises:
        UsageError: no such command or option, or a value of another type.
        BurstError: a value that the libraries do not know.
    """
    program, *arguments = words
    if arguments[0] in COMPLETION:
        return
    command = typer.main.get_command(PROGRAMS[program])
    given = {}
    for one in command.commands.values():
        one.callback = lambda **values: given.update(values)
        if not whole:
            for parameter in one.params:
                parameter.required = False
    try:
        command.main(list(arguments), prog_name=program, standalone_mode=False)
    except UsageError as error:  # text speaks of `--out` without saying where
        if whole or type(error).__name__ != "BadOptionUsage":
            raise
    if program == "bpt" and given.get("method"):
        burst.errors.check_known("method", given["method"], bpt.METHODS)
    if given.get("placement"):
        bpt.parse_placement(given["placement"], depth=12)
    models = given.get("model") or []
    for model in [models] if isinstance(models, str) else models:
        library, colon, _ = model.partition(":")
        if colon:
            burst.errors.check_known("library", library, LIBRARIES)
        elif not model.isupper():  # NAME
            burst.find_backbone(model)
