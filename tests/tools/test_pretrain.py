"""The pretraining recipe on a few small images: what it computes, resumes, refuses and exports."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

pytest.importorskip("kornia", reason="pretraining needs the extra [pretrain]")

import burst
from burst.errors import BurstError, ImageError
from tools.pretrain.__main__ import app
from tools.pretrain.evaluate import evaluate, pooled
from tools.pretrain.export import export
from tools.pretrain.loop import Recipe, shape, train
from tools.pretrain.mae import MaskedAutoencoder, random_masking
from tools.pretrain.moco import MocoV3, info_nce
from tools.pretrain.pixels import load_pixels
from tools.pretrain.supervised import Supervised

CPU = torch.device("cpu")
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}
CLASSES = ("ant", "bee", "cat")


def picture(rng, path, colour, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.normal(0, 25, (size[1], size[0], 3)) + np.array(colour)
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


def pictures(root, **counts):
    """Three classes that differ in colour, so many images of each in each split."""
    rng = np.random.default_rng(0)
    colours = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat": (60, 60, 200)}
    for split, number in counts.items():
        for label, colour in colours.items():
            for i in range(number):
                picture(rng, root / split / label / f"{i}.png", colour)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("images"), train=24, val=4, test=4)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """As few as twenty neighbours allow."""
    return pictures(tmp_path_factory.mktemp("few"), train=8, val=1, test=1)


@pytest.fixture(scope="module")
def pixels(folder):
    return load_pixels([folder / "train"], size=64)


def small(monkeypatch):
    """A recipe builds small models."""
    whole = Recipe.build
    monkeypatch.setattr(Recipe, "build", lambda self, n, **_: whole(self, n, **SMALL))


def test_pixels_are_those_of_the_files(folder, pixels):
    assert pixels.classes == CLASSES
    assert pixels.values.shape == (72, 64, 64, 3)
    first = np.asarray(Image.open(folder / "train" / "ant" / "0.png"))
    assert any((image == first).all() for image in pixels.values[pixels.labels == 0])


def test_a_zip_in_two_parts_gives_what_the_folder_gives(folder, pixels, tmp_path):
    for part, classes in (("a.zip", CLASSES[:2]), ("b.zip", CLASSES[2:])):
        with zipfile.ZipFile(tmp_path / part, "w") as archive:
            for label in classes:
                for file in sorted((folder / "train" / label).iterdir()):
                    archive.write(file, f"{label}/{file.name}")
    zips = [tmp_path / "a.zip", tmp_path / "b.zip"]
    packed = load_pixels(zips, size=64, cache=tmp_path / "cache")
    again = load_pixels(zips, size=64, cache=tmp_path / "cache")
    assert packed.digest == pixels.digest
    for found in (packed, again):
        np.testing.assert_array_equal(found.values, pixels.values)
    assert isinstance(again.values, np.memmap)


def test_odd_sizes_are_resized_and_cut_to_the_centre(rng, tmp_path):
    picture(rng, tmp_path / "a" / "wide.png", (9, 99, 199), size=(90, 45))
    assert load_pixels([tmp_path], size=32).values.shape == (1, 32, 32, 3)


def test_an_empty_folder_a_broken_image_and_a_text_file_are_told_apart(tmp_path):
    with pytest.raises(ImageError, match="no images in class folders"):
        load_pixels([tmp_path], size=64)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.jpg cannot be read"):
        load_pixels([tmp_path], size=64)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ImageError, match="neither a folder nor a zip"):
        load_pixels([tmp_path / "notes.txt"], size=64)


def test_masking_shows_a_quarter_and_its_order_undoes_the_shuffle():
    shown, hidden, restore = random_masking(5, 64, CPU)
    assert shown.shape == (5, 16)
    assert hidden.shape == (5, 48)
    order = torch.cat([shown, hidden], dim=1)
    assert (order.gather(1, restore) == torch.arange(64)).all()


def test_the_encoder_without_masking_is_the_plain_backbone():
    model = MaskedAutoencoder(64, **SMALL).eval()
    images = torch.randn(2, 3, 64, 64)
    shown = torch.arange(64).expand(2, -1)
    expected = model.backbone.forward_features(images)
    torch.testing.assert_close(model.encode(images, shown), expected, rtol=1e-5, atol=1e-5)


def test_mae_targets_are_normalised_patches():
    model = MaskedAutoencoder(64, **SMALL)
    images = torch.rand(2, 3, 64, 64)
    patch = images[1, :, 8:16, 16:24].flatten()  # row 1, column 2: patch 10
    expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
    torch.testing.assert_close(model.targets(images)[1, 10], expected)


def test_hidden_patches_are_decoded_at_their_own_places():
    model = MaskedAutoencoder(64, **SMALL).eval()
    shown, _, restore = random_masking(2, 64, CPU)
    tokens = torch.randn(2, 17, 24)
    seen = {}
    model.decoder.register_forward_pre_hook(lambda _, given: seen.update(x=given[0]))
    model.decode(tokens, restore)
    patches = (seen["x"] - model.positions)[:, 1:]
    embedded = model.embed(tokens[:, 1:])
    for row in range(2):
        torch.testing.assert_close(patches[row, shown[row]], embedded[row], rtol=1e-5, atol=1e-5)
    assert ((patches - model.mask_token).abs().amax(dim=-1) < 1e-6).sum() == 2 * 48


def test_info_nce_is_its_definition():
    queries, keys = torch.randn(6, 8), torch.randn(6, 8)
    q = queries.double().numpy() / np.linalg.norm(queries.double().numpy(), axis=1)[:, None]
    k = keys.double().numpy() / np.linalg.norm(keys.double().numpy(), axis=1)[:, None]
    logits = q @ k.T / 0.2
    own = np.diag(logits) - np.log(np.exp(logits).sum(axis=1))
    assert float(info_nce(queries, keys)) == pytest.approx(-0.4 * own.mean(), rel=1e-5)


def test_the_momentum_encoder_follows_slowly_and_learns_nothing_itself():
    model = MocoV3(32, **SMALL)
    assert not any(p.requires_grad for p in model.slow_backbone.parameters())
    assert not model.backbone.patch_embed.proj.weight.requires_grad
    fast, slow = model.backbone.blocks[0].mlp.fc1.weight, model.slow_backbone.blocks[0].mlp.fc1
    with torch.no_grad():
        fast += 1
    before = slow.weight.clone()
    model.after_step(progress=0.0)
    torch.testing.assert_close(slow.weight, before + 0.01, rtol=1e-4, atol=1e-6)
    model.after_step(progress=1.0)
    torch.testing.assert_close(slow.weight, before + 0.01, rtol=1e-4, atol=1e-6)


def test_supervised_loss_at_a_zero_head_is_that_of_chance(pixels):
    model = Supervised(32, num_classes=3, **SMALL)
    torch.nn.init.zeros_(model.head.weight)
    batch = torch.from_numpy(np.array(pixels.values[:8])), torch.from_numpy(pixels.labels[:8])
    assert float(model(*batch).detach()) == pytest.approx(np.log(3), rel=1e-5)


def test_the_schedule_warms_up_and_ends_at_zero():
    assert shape(0.025) == pytest.approx(0.5)
    assert shape(0.05) == pytest.approx(1.0)
    assert shape(0.525) == pytest.approx(0.5)
    assert shape(1.0) == pytest.approx(0.0)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "moco", "supervised"])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(objective, few, tmp_path, monkeypatch):
    """It is stopped in the second of its two epochs, each of which has two steps."""
    small(monkeypatch)
    pixels = load_pixels([few / "train"], size=64)
    sizes = (64,) if objective == "mae" else (32, 64)
    recipe = Recipe(objective=objective, epochs=2, batch_size=12, sizes=sizes, mixup=True)
    whole = train(recipe, pixels, tmp_path / "whole", device=CPU)
    stop_after(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, pixels, tmp_path / "halves", device=CPU)
    monkeypatch.undo()
    small(monkeypatch)
    halves = train(recipe, pixels, tmp_path / "halves", device=CPU, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name


def stop_after(steps, monkeypatch):
    """Save and interrupt the training after some steps."""
    from tools.pretrain import loop

    step = loop._Run.step

    def counted(self, progress):
        if self.state.step == steps:
            self.save()
            raise KeyboardInterrupt
        return step(self, progress)

    monkeypatch.setattr(loop._Run, "step", counted)


def test_supervised_training_learns_three_colours(pixels, tmp_path, monkeypatch):
    small(monkeypatch)
    recipe = Recipe(objective="supervised", epochs=12, batch_size=24, lr=2e-2, sizes=(32,))
    train(recipe, pixels, tmp_path, device=CPU)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["images"] == 12 * 72
    assert last["loss"] < 0.95 * np.log(3)


def test_a_folder_of_another_run_is_left_alone(pixels, tmp_path, monkeypatch):
    small(monkeypatch)
    recipe = Recipe(objective="mae", epochs=1, batch_size=36)
    train(recipe, pixels, tmp_path, device=CPU)
    with pytest.raises(BurstError, match="already holds a run"):
        train(recipe, pixels, tmp_path, device=CPU)
    other = Recipe(objective="mae", epochs=1, batch_size=36, seed=1)
    with pytest.raises(BurstError, match="another seed"):
        train(other, pixels, tmp_path, device=CPU, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(pixels, tmp_path, monkeypatch):
    small(monkeypatch)
    recipe = Recipe(objective="mae", epochs=1, batch_size=36)
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(MaskedAutoencoder, "forward", lambda self, pixels: nan * 1)
    with pytest.raises(BurstError, match="lower --lr"):
        train(recipe, pixels, tmp_path, device=CPU)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": None}, "either --epochs or --minutes"),
        ({"minutes": 1.0}, "either --epochs or --minutes"),
        ({"objective": "mea"}, "did you mean mae"),
        ({"precision": "float16"}, "bfloat16"),
        ({"sizes": (60,)}, "multiples of 8"),
        ({"sizes": (32, 64)}, "MAE trains at one size"),
        ({"batch_size": 0}, "batches not empty"),
    ],
)
def test_a_recipe_checks_itself(change, words):
    with pytest.raises(BurstError, match=words):
        Recipe(**{"objective": "mae", "epochs": 1} | change)


def test_fewer_images_than_a_batch_are_refused(pixels, tmp_path):
    with pytest.raises(BurstError, match="72 images are fewer than a batch of 256"):
        train(Recipe(objective="mae", epochs=1), pixels, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "nowhere"], "nowhere is neither a folder nor a zip"),
        (["--sizes", "32x"], "not a list of numbers"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(options, words, folder, tmp_path, capfd):
    given = ["mae", "--data", str(folder / "train"), "--out", str(tmp_path), "--epochs", "1"]
    result = CliRunner().invoke(app, [*given, *options])
    assert result.exit_code == 2
    (line,) = (result.output + capfd.readouterr().err).strip().splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_pooled_features_are_the_definition():
    model = burst.load_backbone("mae_tiny", "random").model
    images = torch.randn(2, 3, 64, 64)
    tokens = model.blocks(model._pos_embed(model.patch_embed(images)))
    expected = model.norm(tokens[:, 1:].mean(dim=1))
    torch.testing.assert_close(pooled(model, images, "avg"), expected)
    torch.testing.assert_close(pooled(model, images, "token"), model.norm(tokens)[:, 0])


def test_colours_are_told_apart_by_features_of_random_weights(folder):
    model = burst.load_backbone("mae_tiny", "random").model
    scores = evaluate(model, folder, pooling="avg")
    assert scores.knn == 100
    assert scores.linear == 100


@pytest.mark.slow
def test_a_run_is_exported_as_weights_that_load_and_a_card(few, tmp_path):
    pixels = load_pixels([few / "train"], size=64)
    recipe = Recipe(objective="moco", epochs=1, batch_size=12, sizes=(32,))
    trained = train(recipe, pixels, tmp_path / "run", device=CPU)
    path, scores = export(
        tmp_path / "run", "moco_tiny", tmp_path / "out", images=few, hardware="a test"
    )
    for name, value in load_file(path).items():
        assert torch.equal(value, trained.backbone.state_dict()[name].half()), name
    card = path.with_suffix(".md").read_text()
    assert "| images seen | 24 (1.0 epochs) |" in card
    assert burst.load_backbone("moco_tiny", path).report.sha256 in card
    assert f"| moco_tiny | {scores['trained'].knn:.1f} %" in card
    assert "It shows what the paper shows" in card
