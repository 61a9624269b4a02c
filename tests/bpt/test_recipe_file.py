"""Recipes as TOML files."""

import dataclasses
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpt
from bpt.recipe_file import _toml
from burst import BurstError, UnknownName

ASKED = [
    ("digits", {}),
    ("digits", {"method": "linear", "head_norm": "batch", "batch_size": 16}),
    ("digits", {"method": "bpt-dwhiten", "shrinkage": 0.25, "through_norm": True, "views": 2}),
    ("digits", {"whitening": "w.pt", "epochs": 3, "lr": 1e-8, "min_lr": 0}),
    ('folder:my photos/\u00fc "b"', {"method": "full", "mixup": 0.8, "compile": True}),
    ("cub", {"method": "vpt", "placement": "deep", "train_fraction": 0.1}),
    ("cub", {"method": "lora", "shrinkage": None}),
    ("nabirds", {"method": "bpt-fwhiten", "model": "mae_vitl", "shrinkage": "oas"}),
    ("coco", {}),
    ("coco:mine", {"method": "full", "schedule": "3", "image_size": 512}),
]


@pytest.mark.parametrize("dataset, asked", ASKED, ids=lambda value: str(value)[:30])
def test_a_saved_recipe_is_the_same_again_with_its_sources(dataset, asked, tmp_path):
    recipe = bpt.make_recipe(dataset, **asked)
    again = bpt.load_recipe(bpt.save_recipe(recipe, tmp_path / "run.toml"))
    assert type(again) is type(recipe) and again == recipe
    assert again.origins == recipe.origins


@given(st.one_of(st.text(), st.booleans(), st.integers(-(2**63), 2**63 - 1)))
def test_what_is_written_is_what_toml_reads(value):
    try:
        f"{value}".encode()
    except UnicodeEncodeError:  # half of a pair: no TOML can hold it
        return
    assert tomllib.loads(f"x = {_toml(value)}")["x"] == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_bit_for_bit(value):
    assert tomllib.loads(f"x = {_toml(value)}")["x"].hex() == value.hex()


@settings(max_examples=50)
@given(
    st.sampled_from(bpt.METHODS),
    st.integers(1, 500),
    st.floats(1e-9, 1e3),
    st.sampled_from(["bfloat16", "float32"]),
)
def test_every_method_comes_back_whatever_was_chosen(method, epochs, lr, precision):
    import tempfile
    from pathlib import Path

    recipe = bpt.make_recipe(
        "digits", method=method, epochs=epochs, lr=lr, min_lr=lr / 2, precision=precision
    )
    with tempfile.TemporaryDirectory() as folder:
        assert bpt.load_recipe(bpt.save_recipe(recipe, Path(folder) / "a.toml")) == recipe


def test_what_is_typed_wins_and_is_given(tmp_path):
    saved = bpt.save_recipe(bpt.make_recipe("cub"), tmp_path / "run.toml")
    recipe = bpt.load_recipe(saved, lr=0.5, dataset=None, epochs=7)
    assert (recipe.dataset, recipe.lr, recipe.epochs) == ("cub", 0.5, 7)
    assert recipe.origins["lr"] == "given" != recipe.origins["weight_decay"]


def test_another_method_that_is_typed_brings_its_own_rates(tmp_path):
    saved = bpt.save_recipe(bpt.make_recipe("cub", min_lr=1e-6), tmp_path / "run.toml")
    recipe = bpt.load_recipe(saved, method="linear")
    alone = bpt.make_recipe("cub", method="linear", min_lr=1e-6)
    assert recipe == alone and recipe.origins == alone.origins


def test_a_rate_that_was_changed_in_a_saved_file_is_somebodys_choice(tmp_path):
    saved = bpt.save_recipe(bpt.make_recipe("cub"), tmp_path / "run.toml")
    published = tomllib.loads(saved.read_text())
    line = f"lr = {published['lr']!r}"
    assert published["lr"] != 0.123 and line in saved.read_text()
    saved.write_text(saved.read_text().replace(line, "lr = 0.123", 1))
    recipe = bpt.load_recipe(saved)
    assert recipe.lr == 0.123 and recipe.origins["lr"] == "given"
    assert recipe.origins["weight_decay"] == published["origins"]["weight_decay"]
    other = bpt.load_recipe(saved, method="vpt")
    assert other.lr == 0.123 and other.origins["lr"] == "given"
    assert other.weight_decay == bpt.make_recipe("cub", method="vpt").weight_decay


def test_keys_may_be_written_as_options_are_typed(tmp_path):
    (tmp_path / "a.toml").write_text('num-prompts = 7\nlr = 1\ndataset = "digits"\n')
    recipe = bpt.load_recipe(tmp_path / "a.toml")
    assert recipe.num_prompts == 7 and isinstance(recipe.lr, float)


def test_the_dataset_that_is_typed_may_make_it_a_detectors(tmp_path):
    (tmp_path / "a.toml").write_text('channels = 64\nmethod = "vpt"\n')
    assert bpt.load_recipe(tmp_path / "a.toml", dataset="coco").channels == 64
    with pytest.raises(BurstError, match="channels is no option of a training on digits"):
        bpt.load_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "text, says",
    [
        ('datset = "cub"', r"unknown key in \S*a.toml: 'datset'; did you mean dataset"),
        ("num_prompt = 3", "did you mean num_prompts"),
        ('epochs = "ten"', r'a.toml: epochs is "ten", expected a whole number'),
        ("epochs = 1.5", "epochs is 1.5, expected a whole number"),
        ("epochs = true", "epochs is true, expected a whole number"),
        ("lr = [1]", r"lr is \[1\], expected a number"),
        ("cache = 1", "cache is 1, expected true or false"),
        ("shrinkage = true", "shrinkage is true, expected a text or a number"),
        ("dataset = 3", "dataset is 3, expected a text"),
        ("lr = 1979-05-27", "lr is .*, expected a number"),
        ("num-prompts = 3\nnum_prompts = 4", "has num_prompts twice"),
        ("origins = 3", "origins must be a table of texts"),
        ("x =", r"a.toml is no TOML: .* \(at"),
        ('method = "vtp"', "did you mean vpt"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_key(text, says, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(BurstError, match=says) as caught:
        bpt.load_recipe(tmp_path / "a.toml")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(BurstError, match="does not exist; `bpt train ... --save-config"):
        bpt.load_recipe(tmp_path / "a.toml")
    with pytest.raises(BurstError, match="cannot read"):
        bpt.load_recipe(tmp_path)
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BurstError, match="no TOML"):
        bpt.load_recipe(tmp_path / "b.toml")
    with pytest.raises(UnknownName, match="did you mean cub"):
        bpt.load_recipe(_written(tmp_path, 'dataset = "cup"'))


def test_only_what_has_an_effect_is_written(tmp_path):
    recipe = dataclasses.replace(bpt.make_recipe("digits", method="linear"), num_prompts=7)
    text = bpt.save_recipe(recipe, tmp_path / "run.toml").read_text()
    assert text.splitlines()[:2] == ['dataset = "digits"', 'method = "linear"']
    assert "num_prompts" not in text and "lr = 0.01" in text


def _written(folder, text):
    (folder / "c.toml").write_text(text)
    return folder / "c.toml"
