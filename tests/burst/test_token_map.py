"""Maps of tokens against loops in float64, and where they lie in the picture."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy import stats
from support import DIM, backbone_of, vit

from burst.adapters import OmittedTermWarning, find_blocks
from burst.archive import list_images
from burst.errors import BurstError, ImageError, UnsupportedModel
from burst.preprocess import decode
from burst.projection import projection
from burst.survey import images_for
from burst.token_map import COLUMNS, map_photos, token_energy
from burst.tokens import capture


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit(reg_tokens=2), std=(0.3, 0.4, 0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    for i, size in enumerate([(40, 30), (20, 20), (16, 50)]):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{'cab'[i]}.png")
    return place


@pytest.fixture(scope="module")
def found(backbone, folder):
    return map_photos(backbone, [folder])


def test_shares_are_those_of_a_loop_in_float64(backbone, folder, found):
    reads = {}
    stream = images_for(backbone, folder, num_images=None)
    for name, image in zip(stream.names, next(iter(stream)), strict=True):
        with capture(backbone.model) as read, torch.inference_mode():
            backbone.model(image[None])
            reads[name] = {block: x[0].double().numpy() for block, x in read.items()}
    for one in found.maps:
        for block in find_blocks(backbone.model):
            w_q, w_k = (w.double().numpy() for w in projection(block.attention).whole())
            x = reads[one.image][block.index]
            tokens, dimensions = np.zeros(len(x)), np.zeros(DIM)
            y = w_q @ w_k.T @ x.T
            for row in range(DIM):
                for column in range(len(x)):
                    tokens[column] += y[row, column] ** 4
                    dimensions[row] += y[row, column] ** 4
            got = one.blocks[block.index]
            np.testing.assert_allclose(got.share, tokens / tokens.sum(), rtol=1e-4)
            np.testing.assert_allclose(got.dimensions, dimensions / dimensions.sum(), rtol=1e-4)
            np.testing.assert_allclose(got.norm, np.linalg.norm(x, axis=1), rtol=1e-5)
            assert got.kurtosis == pytest.approx(stats.kurtosis(y, axis=None), abs=1e-4)
            np.testing.assert_allclose(got.times_even, got.share * 19)


def test_a_table_has_a_row_a_block_and_token(found):
    (first, *_) = found.maps
    table = first.table()
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 3 * 19
    rows = table[table["block"] == 1]
    assert rows["kind"].tolist() == ["class", "register 0", "register 1", *["patch"] * 16]
    assert rows["row"].isna().sum() == 3
    assert (rows["row"] * 4 + rows["column"]).dropna().tolist() == list(range(16))
    assert rows["share"].sum() == pytest.approx(1)
    np.testing.assert_array_equal(
        first.patches(rows["norm"].to_numpy())[2, 1], rows["norm"].iat[12]
    )


def test_photographs_come_by_name_and_as_the_model_sees_them(backbone, folder, found):
    assert [one.image for one in found.maps] == ["a.png", "b.png", "c.png"]
    preprocess = backbone.preprocess
    for one in found.maps:
        with list_images(folder).reader() as read:
            seen = preprocess.centre(decode(read(one.image)))
        np.testing.assert_array_equal(one.pixels, seen.permute(1, 2, 0).numpy())
    assert found.record["model"] == "test" and found.bad_images == ()


def test_a_patch_that_differs_is_the_one_with_the_energy():
    model = vit()
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.bias.zero_()
        model.cls_token.zero_()
        model.blocks[0].norm1 = torch.nn.Identity()
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:12, 4:8] = 1.0  # row 2, column 1 of patches of 4 pixels
    (one,) = token_energy(model, [image], blocks=[0])
    patches = one.patches(one.blocks[0].share)
    assert patches[2, 1] == pytest.approx(1) and patches.sum() == pytest.approx(1)
    assert one.image == 0 and (one.grid.height, one.grid.width) == (4, 4)
    expected = np.zeros((16, 16, 3))
    expected[8:12, 4:8] = 255  # stretched, as nobody knows how it was normalised
    np.testing.assert_array_equal(one.pixels, expected)


def test_a_response_of_zero_has_no_shares():
    model = vit()
    torch.nn.init.zeros_(model.blocks[0].attn.qkv.weight)
    (one,) = token_energy(model, [torch.randn(1, 3, 16, 16)], blocks=[0])
    assert np.isnan(one.blocks[0].share).all() and np.isnan(one.blocks[0].kurtosis)


def test_a_model_without_a_grid_is_told():
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2),
        num_classes=0,
    )  # fmt: skip
    images = [torch.zeros(1, 3, 32, 32)]
    with (
        pytest.warns(OmittedTermWarning),
        pytest.raises(UnsupportedModel, match=r"reads 16 tokens at a time, which are no grid"),
    ):
        token_energy(swin, images, blocks=[0])


def test_blocks_without_a_grid_are_left_out_unless_asked_for():
    sam = timm.models.vision_transformer_sam.VisionTransformerSAM(
        img_size=32, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0,
        window_size=4, global_attn_indexes=(1,), use_rel_pos=False, neck_chans=0,
    )  # fmt: skip
    images = [torch.randn(2, 3, 32, 32)]
    one, other = token_energy(sam, images)
    assert list(one.blocks) == list(other.blocks) == [1]
    assert one.prefix == () and one.grid.count == 64 and (one.image, other.image) == (0, 1)
    with pytest.raises(UnsupportedModel, match=r"blocks\.0 reads 16 tokens"):
        token_energy(sam, images, blocks=[0, 1])


def test_bad_calls_are_refused(backbone, folder, tmp_path):
    with pytest.raises(BurstError, match="blocks 0 to 2"):
        map_photos(backbone, [folder], blocks=[3])
    with pytest.raises(ImageError, match="no photograph"):
        map_photos(backbone, [])
    with pytest.raises(ImageError, match=r"does not exist"):
        map_photos(backbone, [folder / "d.png"])
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ImageError, match=r"notes\.txt is neither an image nor an archive"):
        map_photos(backbone, [tmp_path / "notes.txt"])
    (tmp_path / "torn.png").write_text("no image")
    with pytest.raises(ImageError, match=r"none of the 1 images .*torn\.png.* can be read"):
        map_photos(backbone, [folder, tmp_path / "torn.png"])
    text = backbone_of(vit(), kind="text")
    for call in (lambda: map_photos(text, [folder]), lambda: token_energy(text, [])):
        with pytest.raises(UnsupportedModel, match="reads text, so there is no picture"):
            call()


def test_a_bad_image_of_a_folder_is_left_out_and_told(backbone, folder, tmp_path):
    (tmp_path / "torn.png").write_text("no image")
    (tmp_path / "good.png").write_bytes((folder / "a.png").read_bytes())
    told = []
    found = map_photos(
        backbone, [tmp_path, folder / "b.png"], progress=lambda *step: told.append(step)
    )
    assert [one.image for one in found.maps] == ["good.png", "b.png"]
    assert [name for name, _ in found.bad_images] == ["torn.png"]
    assert told == [(1, 2), (2, 2)]


def test_the_sample_is_four_crops(backbone):
    assert len(map_photos(backbone, ["sample"], blocks=[0]).maps) == 4


@pytest.mark.parametrize("kind", [str, Path])
def test_one_photograph_needs_no_list(backbone, folder, kind):
    (one,) = map_photos(backbone, kind(folder / "a.png"), blocks=[0]).maps
    assert one.image == "a.png"


def test_photographs_of_one_name_are_told_apart_and_one_given_twice_is_mapped_once(
    backbone, folder, tmp_path
):
    (tmp_path / "a.png").write_bytes((folder / "b.png").read_bytes())
    photos = [folder / "a.png", tmp_path, folder / "c.png", folder / "a.png"]
    names = [one.image for one in map_photos(backbone, photos, blocks=[0]).maps]
    assert names == [str(folder / "a.png"), f"{tmp_path}/a.png", "c.png"]
