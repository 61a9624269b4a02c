"""The reference lists every public name, once, and explains each of them."""

import importlib
import inspect

import pytest

from tools.docs import names

PAGES = {str(path): path.read_text() for path in (names.ROOT / "docs" / "reference").rglob("*.md")}
PUBLIC = names.all_public_names()


def test_the_reference_lists_every_public_name():
    assert names.complaints(PUBLIC, PAGES) == []


def test_the_names_read_from_source_are_those_of_the_packages():
    for package in names.PACKAGES:
        module = importlib.import_module(package)
        found = names.public_names(package)
        assert list(found) == module.__all__
        for name, place in found.items():
            owner, last = place.rsplit(".", 1)
            assert getattr(importlib.import_module(owner), last) is getattr(module, name)


@pytest.mark.parametrize(
    ("public", "page", "complaint"),
    [
        ({"a.b": "a.c.b", "a.d": "a.d"}, "::: a.b", "no page of the reference lists a.d"),
        ({"a.b": "a.c.b"}, "::: a.b\n\n::: a.b", "the reference lists a.b 2 times"),
        ({"a.b": "a.c.b"}, "::: a.b\n::: a.x", "the reference lists a.x, which is not public"),
    ],
)
def test_what_is_wrong_with_a_reference_is_said(public, page, complaint):
    assert names.complaints(public, {"page.md": page}) == [complaint]


def test_what_public_classes_share_may_be_listed_too():
    assert names.complaints({"a.B": "a.b.B"}, {"page.md": "::: a.B\n::: a.b.Base"}) == []


def test_a_function_that_shares_its_name_with_a_file_is_shown_in_its_place():
    written = names.resolve_shadowed("::: burst.survey\n\n::: burst.images_for\n", PUBLIC)
    assert "::: burst.survey.survey\n    options:\n      heading: burst.survey\n" in written
    assert "[](){#burst.survey}" in written
    assert "::: burst.images_for\n" in written


def test_every_public_class_and_function_says_what_it_is():
    for name in PUBLIC:
        package, last = name.split(".")
        public = getattr(importlib.import_module(package), last)
        assert inspect.getdoc(public) or not callable(public), name


@pytest.mark.parametrize(
    ("code", "package", "first"),
    [
        ("burst.survey", None, "burst.survey"),
        ("burst.Survey.load", "bpt", "burst.Survey"),
        ("Survey.load", "burst", "burst.Survey"),
        ("load_backbone", "bpt", "bpt.load_backbone"),
        ("ShapeError", "bpt", "bpt.ShapeError"),
        ("ShapeError", None, None),
        ("train", "bpt", None),  # perhaps the split
        ("Prefix", "burst", None),
    ],
)
def test_a_name_in_a_text_means_a_public_one_where_it_cannot_be_a_word(code, package, first):
    assert [*names.meanings(code, package), None][0] == first


def test_a_name_of_another_package_is_found_too():
    assert "burst.ShapeError" in names.meanings("ShapeError", "bpt")
    assert "burst.matmul_histogram" in names.meanings("burst.kernels.matmul_histogram", None)


def test_names_explained_together_are_explained_each():
    docstrings = pytest.importorskip("tools.docs.docstrings", reason="griffe is not installed")
    read = (
        "A line.\n\nArgs:\n    low, high: of the\n        interval.\n    k: a, b: c.\n\nNo, no: x."
    )
    assert docstrings.one_name_a_line(read) == (
        "A line.\n\nArgs:\n"
        "    low: of the\n        interval.\n    high: of the\n        interval.\n"
        "    k: a, b: c.\n\nNo, no: x."
    )
