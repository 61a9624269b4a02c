"""Padding and patches left out: which mask speaks of which tokens of models of transformers."""

import pytest
import timm
import torch

from burst.adapters import find_blocks
from burst.errors import UnsupportedModel
from burst.forward import read_tokens
from burst.stream import as_stream
from burst.survey import SurveyOptions, survey

transformers = pytest.importorskip("transformers", reason="install the extra [hf]")

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40,
}  # fmt: skip
IDS = torch.arange(3, 15).reshape(2, 6)
SOURCE = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
TARGET = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])


def kept(model, batch, blocks, **options):
    """How many tokens of each block are handed over."""
    seen = {}
    read_tokens(
        model.eval(), as_stream([batch]), blocks,
        lambda block, x: seen.update({block: x.shape[:-1].numel()}), **options,
    )  # fmt: skip
    return seen


@pytest.fixture
def bart():
    config = transformers.BartConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=40, vocab_size=50,
        max_position_embeddings=32, pad_token_id=0, decoder_start_token_id=1, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return transformers.BartModel(config)


def test_a_decoder_is_masked_by_its_own_mask(bart):
    assert [block.name for block in find_blocks(bart)][:2] == [
        "encoder.layers.0",
        "decoder.layers.0",
    ]
    batch = {"input_ids": IDS, "attention_mask": SOURCE, "decoder_input_ids": IDS}
    assert kept(bart, batch, [0, 1]) == {0: 9, 1: 12}
    assert kept(bart, {**batch, "decoder_attention_mask": TARGET}, [0, 1]) == {0: 9, 1: 7}


def test_a_decoder_that_reads_what_the_model_makes_of_padding_is_refused(bart):
    batch = {"input_ids": IDS, "attention_mask": SOURCE}
    assert kept(bart, batch, [0]) == {0: 9}
    with pytest.raises(UnsupportedModel, match=r"tokens of decoder\.layers\.0 of padded ones"):
        kept(bart, batch, [0, 1])


def test_a_mask_of_text_is_not_laid_on_the_patches_of_images():
    config = transformers.CLIPConfig(
        text_config={**SIZES, "vocab_size": 50, "eos_token_id": 2, "bos_token_id": 1},
        vision_config={**SIZES, "image_size": 16, "patch_size": 8},
    )
    model = transformers.CLIPModel(config)
    batch = {"input_ids": IDS[:, :5], "attention_mask": SOURCE[:, :5]}
    batch["pixel_values"] = torch.zeros(2, 3, 16, 16)  # four patches and a class token
    names = [block.name.partition("_")[0] for block in find_blocks(model)]
    assert names == ["text", "vision"]
    assert kept(model, batch, [0, 1]) == {0: 8, 1: 10}
    assert kept(model, batch, [0, 1], tokens="patch") == {0: 8, 1: 8}


def test_patches_that_fill_up_an_image_are_padding():
    if not hasattr(transformers, "Siglip2VisionModel"):
        pytest.skip("this version has no SigLIP 2")
    config = transformers.Siglip2VisionConfig(**SIZES, patch_size=4, num_patches=16)
    model = transformers.Siglip2VisionModel(config)
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 8:] = 0
    batch = {
        "pixel_values": torch.randn(2, 16, 48),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[4, 4], [2, 4]]),
    }
    assert kept(model, batch, [0]) == {0: 24}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(
    "size", ["naflexvit_base_patch16_gap", "naflexvit_so150m2_patch16_reg1_gap"]
)
def test_patches_that_timms_naflex_calls_invalid_are_padding(size, loaded):
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(size, **sizes)
    front = model.num_prefix_tokens
    valid = torch.arange(6) < torch.tensor([[6], [4]])
    places = torch.stack([torch.arange(6) // 3, torch.arange(6) % 3], dim=-1).expand(2, -1, -1)
    batch = {"patch_coord": places, "patch_valid": valid}
    batch["patches" if loaded else "x"] = torch.randn(2, 6, 768)
    assert kept(model, batch, [0]) == {0: 2 * front + 10}
    assert kept(model, batch, [0], tokens="patch") == {0: 10}


class Encoder(torch.nn.Module):
    """A text model as torch's own parts make it."""

    def __init__(self, batch_first):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.batch_first = batch_first
        self.encoder = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens, src_key_padding_mask):
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        return self.encoder(tokens, src_key_padding_mask=src_key_padding_mask)


@pytest.mark.parametrize("batch_first", [True, False])
def test_what_torchs_mask_says_is_padding_is_padding(batch_first):
    padded = SOURCE == 0
    for mask in (padded, torch.zeros(2, 6).masked_fill(padded, -torch.inf)):
        batch = {"tokens": torch.randn(2, 6, 16), "src_key_padding_mask": mask}
        assert kept(Encoder(batch_first), batch, [0]) == {0: 9}
        scores = survey(Encoder(batch_first), [batch], SurveyOptions(quantities=("logits",)))
        assert scores.softmax.set_index("head")["queries"]["all"] == 9 * 2  # of two heads


def test_patches_that_are_left_out_by_chance_are_told():
    model = transformers.ViTMAEModel(
        transformers.ViTMAEConfig(**SIZES, image_size=16, patch_size=4)
    )
    batch = torch.zeros(2, 3, 16, 16)
    with pytest.raises(UnsupportedModel, match="leaves 75% of the patches out by chance"):
        kept(model, batch, [0])
    model.config.mask_ratio = 0.0
    assert kept(model, batch, [0]) == {0: 34}
