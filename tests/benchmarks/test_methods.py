"""`benchmarks/methods.py`: what its searches are, and which images they are given."""

import zipfile
from pathlib import Path

import pytest

from bpt.search import SearchOptions
from bpt.search.recipes import method_recipes
from burst.errors import BurstError


def test_every_case_is_a_search_that_a_search_takes(benchmark):
    for case in benchmark.CASES.values():
        recipes = method_recipes(case.base("digits", case.methods), case.methods)
        options = SearchOptions(**case.axes)
        points = [options.grid_of(recipe).points for recipe in recipes.values()]
        assert case.why.startswith("No search") == all(len(one) == 1 for one in points)


def test_the_methods_left_out_may_follow_later_for_no_recipe_depends_on_them(benchmark):
    for case in benchmark.CASES.values():
        recipes = method_recipes(case.base("digits", case.methods), case.methods)
        for method in case.methods:
            alone = method_recipes(case.base("digits", (method,)), (method,))
            assert alone == {method: recipes[method]}


def test_the_list_says_the_rates_of_each_and_why_it_is_there(benchmark, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["methods.py", "--list"])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    for heading, settings, (name, case) in zip(
        lines[::2], lines[1::2], benchmark.CASES.items(), strict=True
    ):
        assert heading == f"{name}: {case.why}"
        for axis, values in case.axes.items():
            if isinstance(values, tuple):
                assert f"{axis} {', '.join(f'{one:g}' for one in values)}" in settings
        assert "lrs " in settings and "weight_decays " in settings


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("README.md", "not an image")
        for split, count in (("train", 100), ("val", 3), ("test", 4)):
            for label in ("ant", "bee"):
                for number in reversed(range(count)):
                    name = f"{label}{number:03}.jpeg"
                    target.writestr(f"set/{split}/{label}/{name}", f"{split} {name}")
    return path


def test_training_images_are_cut_in_two_and_the_archives_own_validation_is_left(
    benchmark, archive, tmp_path
):
    folder = benchmark.unpacked(archive, tmp_path / "made" / "images", benchmark.PARTS)
    found = {
        (split, label): sorted(one.read_text() for one in (folder / split / label).iterdir())
        for split in ("train", "val", "test")
        for label in ("ant", "bee")
    }
    parts = {"train": ("train", 0, 60), "val": ("train", 60, 100), "test": ("test", 0, 4)}
    for (split, label), texts in found.items():
        source, first, end = parts[split]
        assert texts == [f"{source} {label}{number:03}.jpeg" for number in range(first, end)]
    assert list((tmp_path / "made").iterdir()) == [folder]


def test_what_is_unpacked_is_not_unpacked_again_and_half_of_it_is_not_left(
    benchmark, archive, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(benchmark, "write", full)
    with pytest.raises(OSError, match="no space left"):
        benchmark.unpacked(archive, tmp_path / "made" / "images", benchmark.PARTS)
    assert not list((tmp_path / "made").iterdir())
    (tmp_path / "made" / "images").mkdir()
    benchmark.unpacked(archive, tmp_path / "made" / "images", benchmark.PARTS)


def damage(path):
    """One byte of an image that its checksum no longer fits."""
    content = path.read_bytes()
    path.write_bytes(content.replace(b"train ant007", b"train ant0x7", 1))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (Path.unlink, "does not exist"),
        (lambda path: path.write_bytes(b"no zip"), "not a complete zip"),
        (damage, "cannot read 'set/train/ant/ant007.jpeg', is it damaged? BadZipFile"),
    ],
)
def test_an_archive_that_cannot_serve_is_refused_and_leaves_no_folder(
    benchmark, archive, tmp_path, monkeypatch, capsys, spoil, says
):
    spoil(archive)
    command = ["--data", str(archive), "--out", str(tmp_path / "out"), "vits112-last4"]
    monkeypatch.setattr("sys.argv", ["methods.py", *command])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out" / "images").exists()


def test_an_archive_without_a_split_is_refused(benchmark, tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("train/ant/1.jpeg", "an image")
    with pytest.raises(BurstError, match="has no test/CLASS/IMAGE"):
        benchmark.unpacked(path, tmp_path / "images", benchmark.PARTS)
    assert not (tmp_path / "images").exists()
