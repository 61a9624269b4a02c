"""The scale of whitened prompts: from the option that is typed to the numbers in the run folder."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from colours import write_images
from safetensors.torch import load_file
from typed import Typed

import bpt
import burst
from bpt.prompt import NULL_GAIN
from bpt.prompt_starts import whitening_for
from cli import bpt as command

SMALL = ("--epochs", "1", "--batch-size", "8", "--placement", "last:1", "--num-prompts", "4")
BLOCK, WIDTH = 11, 192
TYPED = Typed(command.app)
succeeded, refused = TYPED.succeeded, TYPED.refused


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    counts = {"train": 3, "val": 1, "test": 1}
    return write_images(tmp_path_factory.mktemp("images"), counts)


def trained(images, out, *options):
    succeeded("train", f"folder:{images}", "--out", out, *SMALL, "--device", "cpu", *options)
    return bpt.open_run(out)


def in_folder(run):
    """P, and what it is multiplied by, as the files have them."""
    values = load_file(run.folder / "prompt.safetensors")[f"prompts.{BLOCK}.values"]
    used = load_file(run.folder / "whitening.safetensors")["W"][0]
    return values.double().numpy(), used.double().numpy()


def made_by_burst(run):
    """The whitening that the recipe asks for, before a prompt has a use for it."""
    benchmark = bpt.open_dataset("folder", run.recipe.dataset.partition(":")[2])
    recipe = replace(run.recipe, whitening=None)
    return whitening_for(recipe, run.load_backbone(), benchmark.train, benchmark.digest)


@pytest.fixture(scope="module")
def diagonal(images, tmp_path_factory):
    return trained(images, tmp_path_factory.mktemp("runs") / "d", "--method", "bpt-dwhiten")


def test_the_tensors_in_the_folder_give_the_tokens_of_the_diagonal_prompt(diagonal):
    values, used = in_folder(diagonal)
    model, _ = diagonal.load_model()
    tokens = model.prompt_values()[BLOCK].numpy()
    np.testing.assert_allclose(tokens, values * used.diagonal(), rtol=1e-5, atol=1e-7)
    expected = made_by_burst(diagonal).variances[0].numpy() ** -0.5
    expected /= np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(used.diagonal(), expected, rtol=1e-5)
    assert np.count_nonzero(used - np.diag(used.diagonal())) == 0


@pytest.mark.slow
def test_a_diagonal_prompt_is_evaluated_resumed_exported_and_reported(diagonal, tmp_path):
    record = json.loads(succeeded("evaluate", diagonal.folder, "--json").stdout)
    assert record["accuracy"] == pytest.approx(diagonal.result["test_accuracy"])
    assert record["loss"] == pytest.approx(diagonal.result["test_loss"], rel=1e-5)
    dataset = diagonal.recipe.dataset
    method = ("--method", "bpt-dwhiten")
    again = ("train", dataset, "--out", diagonal.folder, *SMALL, *method, "--resume", "--json")
    assert json.loads(succeeded(*again).stdout) == diagonal.result
    succeeded("export", diagonal.folder, "--out", tmp_path / "m.safetensors")
    exported, _ = bpt.load_exported(tmp_path / "m.safetensors")
    model, _ = diagonal.load_model()
    assert torch.equal(exported.prompt_values()[BLOCK], model.prompt_values()[BLOCK])
    succeeded("report", diagonal.folder, "--no-confusion", "--out", tmp_path / "report")
    assert "bpt-dwhiten" in (tmp_path / "report/index.html").read_text()


def test_the_null_gain_that_is_typed_is_the_gain_below_the_floor(images, tmp_path):
    options = ("--method", "bpt-fwhiten", "--null-gain", "0.5", "--floor", "0.01")
    run = trained(images, tmp_path / "run", *options)
    values, used = in_folder(run)
    kept = made_by_burst(run).blocks[0].kept
    gains = np.linalg.svd(used, compute_uv=False)
    below = np.isclose(gains, np.median(gains), rtol=1e-3)  # more than half of the directions
    assert np.count_nonzero(below) == WIDTH - kept
    assert np.median(gains) == pytest.approx(0.5 * np.sqrt(np.mean(gains[~below] ** 2)), rel=1e-3)
    assert np.mean(gains**2) == pytest.approx(1.0, rel=1e-5)
    model, _ = run.load_model()
    tokens = model.prompt_values()[BLOCK].numpy()
    np.testing.assert_allclose(tokens, values @ used.T, rtol=1e-4, atol=1e-6)


def test_the_papers_scale_that_is_typed_leaves_w_as_it_is(images, tmp_path):
    run = trained(images, tmp_path, "--method", "bpt-fwhiten", "--prompt-scale", "paper")
    assert run.recipe.prompt_scale == "paper"
    _, used = in_folder(run)
    np.testing.assert_array_equal(used, made_by_burst(run).W[0].double().numpy())


def test_a_run_of_before_there_was_a_scale_is_read_and_goes_on(images, tmp_path):
    options = ("--method", "bpt-fwhiten", "--prompt-scale", "paper", "--floor", "1e-6")
    run = trained(images, tmp_path, *options)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("prompt_scale", "null_gain", "floor", "shrinkage", "through_norm"):
        del config["recipe"][name]
    path.write_text(json.dumps(config))
    before = run.load_model()[0].prompt_values()[BLOCK]
    assert torch.equal(bpt.open_run(tmp_path).load_model()[0].prompt_values()[BLOCK], before)
    command = ("train", f"folder:{images}", "--out", tmp_path, *SMALL, "--resume", "--quiet")
    succeeded(*command, *options)
    assert "prompt_scale paper, not unit" in refused(*command, "--method", "bpt-fwhiten")


def test_floor_shrinkage_and_norm_that_are_typed_are_those_of_the_matrices(images, tmp_path):
    options = ("--floor", "0.1", "--shrinkage", "0.2", "--through-norm")
    run = trained(images, tmp_path, "--method", "bpt-dwhiten", *options)
    record = burst.load_whitening(run.folder / "whitening.safetensors").record
    assert (record["floor"], record["shrinkage"], record["through_norm"]) == (0.1, 0.2, True)
    about = {"method": "bpt-dwhiten", "prompt_scale": "unit", "null_gain": NULL_GAIN}
    assert record["used_by_prompts"] == about


def test_a_bilinear_prompt_starts_from_the_leading_directions_of_a_file(
    images, tmp_path, monkeypatch
):
    starts = []
    build = bpt.train.__globals__["build_model"]

    def watched(*arguments, **more):
        model = build(*arguments, **more)
        starts.append(model.prompts[str(BLOCK)].right.detach().double().numpy().copy())
        return model

    monkeypatch.setitem(bpt.train.__globals__, "build_model", watched)
    backbone = burst.load_backbone("mae_tiny")
    sample = burst.images_for(backbone, "sample", num_images=6)
    whitening = burst.whiten(backbone, sample, burst.WhiteningOptions(blocks=(BLOCK,), floor=1e-3))
    burst.save_whitening(whitening, tmp_path / "W.pt")
    trained(images, tmp_path / "run", "--rank", "3", "--whitening", tmp_path / "W.pt")
    (b,) = starts
    assert np.linalg.norm(b) == pytest.approx(np.sqrt(WIDTH), rel=1e-6)
    gains, right = np.linalg.eigh(whitening.W[0].double().numpy())
    expected = right[:, :3] * gains[:3]
    expected *= np.sqrt(WIDTH) / np.linalg.norm(expected)
    np.testing.assert_allclose(np.abs(b), np.abs(expected), atol=1e-3)


@pytest.mark.slow
def test_a_run_goes_on_with_the_whitening_that_it_was_begun_with_wherever_it_lies(images, tmp_path):
    backbone = burst.load_backbone("mae_tiny")
    for name, count in (("a.pt", 6), ("b.pt", 5)):
        sample = burst.images_for(backbone, "sample", num_images=count)
        options = burst.WhiteningOptions(blocks=(BLOCK,), floor=1e-3)
        made = burst.whiten(backbone, sample, options)
        burst.save_whitening(made, tmp_path / name)
        later = replace(made, record=made.record | {"created": "another day"})
        burst.save_whitening(later, tmp_path / f"anew_{name}")
    (tmp_path / "moved.pt").write_bytes((tmp_path / "a.pt").read_bytes())
    command = ("train", f"folder:{images}", *SMALL, "--device", "cpu", "--method", "bpt-fwhiten")
    given = (*command, "--out", tmp_path / "given")
    succeeded(*given, "--whitening", tmp_path / "a.pt")
    for name in ("moved.pt", "anew_a.pt"):
        succeeded(*given, "--whitening", tmp_path / name, "--resume")
    succeeded(*given, "--resume")
    assert "other whitening" in refused(*given, "--whitening", tmp_path / "b.pt", "--resume")
    made = (*command, "--out", tmp_path / "made")
    succeeded(*made)
    assert "other whitening" in refused(*made, "--whitening", tmp_path / "a.pt", "--resume")
    config = json.loads((tmp_path / "given/config.json").read_text())
    del config["whitening"]["fingerprint"]  # as an earlier version left it
    (tmp_path / "given/config.json").write_text(json.dumps(config))
    succeeded(*given, "--whitening", tmp_path / "moved.pt", "--resume")
    assert "other whitening" in refused(*given, "--whitening", tmp_path / "anew_a.pt", "--resume")


def test_a_run_takes_no_other_matrices_for_its_own(diagonal, tmp_path):
    out = shutil.copytree(diagonal.folder, tmp_path / "run")
    used = burst.load_whitening(out / "whitening.safetensors")
    other = replace(used, W=2 * used.W)
    burst.save_whitening(other, out / "whitening.safetensors")
    assert "holds other matrices than" in refused(
        "export", out, "--out", tmp_path / "m.safetensors"
    )
    (out / "result.json").unlink()
    again = ("--method", "bpt-dwhiten", *SMALL, "--device", "cpu", "--resume", "--out", out)
    assert "holds other matrices than" in refused("train", diagonal.recipe.dataset, *again)
    config = json.loads((out / "config.json").read_text())
    del config["used_whitening"]  # of an earlier version, which did not note it
    (out / "config.json").write_text(json.dumps(config))
    assert bpt.open_run(out).load_model()
    (out / "whitening.safetensors").unlink()
    said = refused("export", out, "--out", tmp_path / "m.safetensors")
    assert f"{out} lacks its whitening.safetensors" in said and "burst whiten" not in said


@pytest.mark.parametrize(
    "options, says",
    [
        (("--method", "vpt", "--prompt-scale", "paper"), "makes no use of prompt_scale"),
        (("--null-gain", "1"), "has none"),
        (("--whitening", "W.pt", "--floor", "0.1"), "has its own"),
        (("--method", "bpt-dwhiten", "--null-gain", "-1"), "null_gain is -1"),
        (("--method", "bpt-dwhiten", "--prompt-scale", "units"), "did you mean unit"),
    ],
)
def test_an_option_without_an_effect_is_one_line(options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused("train", "digits", *options)
