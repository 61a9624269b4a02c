"""Where tokens come from: pictures with known patches, padded texts, windows, streams with gaps."""

import pytest
import timm
import torch
from PIL import Image
from support import backbone_of, vit
from torch import nn

from burst.adapters import find_blocks
from burst.errors import UnsupportedModel
from burst.forward import read_tokens
from burst.patches import Origins, PatchGrid, patch_grid, prefix_names
from burst.stream import as_stream
from burst.survey import images_for


def seen(model, batches, tokens="all", blocks=None):
    """Of each batch and block: names, first, and places."""
    chosen = [b for b in find_blocks(model) if blocks is None or b.index in blocks]
    origins = Origins(as_stream(batches), model, chosen, tokens)
    found = []

    def take(block, x):
        found.append((block, origins.first, origins.names, origins.places(block, x)))

    read_tokens(model, origins, [b.index for b in chosen], take, tokens=tokens)
    return found


@pytest.mark.parametrize("tokens, first", [("all", 0), ("patch", 1)])
def test_each_row_has_its_image_and_its_place_in_it(tokens, first):
    batches = [torch.zeros(2, 3, 16, 16), torch.zeros(3, 3, 16, 16)]
    found = seen(vit(), batches, tokens, blocks=[1])
    assert [start for _, start, *_ in found] == [0, 2]
    for (_, _, names, places), size in zip(found, (2, 3), strict=True):
        assert names is None
        each = list(range(first, 17))
        assert places.token.tolist() == each * size
        assert places.item.tolist() == [i for i in range(size) for _ in each]
        assert places.grid == PatchGrid(4, 4, 4, 4)


def test_a_picture_that_is_not_square_has_rows_and_columns():
    model = vit(img_size=(16, 8))
    [(_, _, _, places)] = seen(model, [torch.zeros(1, 3, 16, 8)], blocks=[0])
    assert places.grid == PatchGrid(4, 2, 4, 4)
    assert patch_grid(vit(patch_size=(8, 4)), 16, 16) == PatchGrid(2, 4, 8, 4)


def test_a_patch_of_the_grid_is_that_patch_of_the_picture():
    """Behind one changed patch of the pixels one token is changed: the grid says which."""
    model, plain = vit().eval(), torch.zeros(1, 3, 16, 16)
    grid = patch_grid(model, 16, 16)
    reads = []
    for row, column in ((0, 0), (1, 3), (3, 2)):
        hot = plain.clone()
        down, across = row * grid.height, column * grid.width
        hot[..., down : down + grid.height, across : across + grid.width] = 1.0
        reads = []
        read_tokens(model, as_stream([plain, hot]), [0], lambda _, x, to=reads: to.append(x))
        changed = (reads[0] != reads[1]).any(dim=-1)[0].nonzero().flatten().tolist()
        assert changed == [1 + row * grid.columns + column]


def test_prefix_tokens_have_names():
    assert prefix_names(vit(), 1) == ("class",)
    assert prefix_names(vit(reg_tokens=2), 3) == ("class", "register 0", "register 1")
    bare = vit(class_token=False, reg_tokens=1, global_pool="avg")
    assert prefix_names(bare, 1) == ("register 0",)
    assert prefix_names(nn.Linear(1, 1), 2) == ("prefix 0", "prefix 1")
    distilled = timm.models.deit.VisionTransformerDistilled(
        img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=4
    )
    assert prefix_names(distilled, 2) == ("class", "distillation")
    assert prefix_names(vit(), 0) == ()


def test_windows_of_one_image_come_one_after_the_other_and_have_no_grid():
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=16, depths=(2,), num_heads=(2,),
        num_classes=0,
    )  # fmt: skip
    found = seen(swin, [torch.zeros(2, 3, 32, 32)], blocks=[0])
    [(_, _, _, places)] = found
    assert places.grid is None
    assert places.item.tolist() == [0] * 64 + [1] * 64
    assert places.token.tolist() == [*range(64)] * 2


def test_patches_in_another_order_have_no_grid():
    nest = timm.models.nest.Nest(
        img_size=32, patch_size=4, num_levels=2, embed_dims=(16, 32), num_heads=(2, 2),
        depths=(1, 1), num_classes=0,
    )  # fmt: skip
    [(_, _, _, places)] = seen(nest, [torch.zeros(1, 3, 32, 32)], blocks=[0])
    assert places.grid is None and len(places.token) == 64


def test_names_are_those_of_the_images_that_were_read(tmp_path):
    for i in range(7):
        Image.effect_noise((20, 20), 40 + i).convert("RGB").save(tmp_path / f"{i}.png")
    for bad in ("1", "3", "4"):
        (tmp_path / f"{bad}.png").write_text("no image")
    backbone = backbone_of(vit())
    stream = images_for(backbone, tmp_path, skip_bad=True)
    stream = stream.of_batches([["0.png", "1.png"], ["3.png", "4.png"], ["5.png"], ["2.png"]])
    found = seen(backbone.model, stream, blocks=[0])
    assert [list(names) for _, _, names, _ in found] == [["0.png"], ["5.png"], ["2.png"]]
    assert [start for _, start, *_ in found] == [0, 1, 2]


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids, attention_mask):
        return self.layers(self.embed(input_ids))


def test_tokens_beside_padding_know_their_sequence():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    batch = {"input_ids": torch.ones(2, 3).long(), "attention_mask": mask}
    for _, _, _, places in seen(Text(), [batch]):
        assert places.item.tolist() == [0, 0, 1, 1]
        assert places.token.tolist() == [0, 1, 1, 2]
        assert places.grid is None


def test_a_block_that_merges_images_is_told():
    model = vit()
    merged = nn.Sequential(model)
    merged.forward = lambda x: model.blocks(torch.zeros(1, 34, 32))
    with pytest.raises(UnsupportedModel, match=r"reads 1 sequences of 2 images"):
        seen(merged, [torch.zeros(2, 3, 16, 16)], blocks=[0])
