"""A tiny ViT, and its weights in the layouts that training codes publish or leave behind."""

import argparse
from collections import OrderedDict

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from burst.checkpoint import load_checkpoint
from burst.errors import CheckpointError

D, HEADS, DEPTH, CLASSES = 32, 4, 2, 5


def tiny_vit(seed=0, **changes):
    """A ViT all parameters of which are drawn: a swap of any two shows."""
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": D, "depth": DEPTH, "num_heads": HEADS}
    model = VisionTransformer(**(sizes | {"num_classes": 0, "global_pool": "token"} | changes))
    return drawn(model)


def drawn(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def another(state):
    """Tensors of the same names and shapes, which must not be loaded."""
    return {name: torch.full_like(value, 9.0) for name, value in state.items()}


def dino_head():
    return {"head.mlp.0.weight": torch.ones(7, D), "head.last_layer.weight_g": torch.ones(3, 1)}


def lightning(state, prefix="model."):
    weights = prefixed(prefix, state) | {"criterion.weight": torch.ones(CLASSES)}
    callbacks = {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}}
    loops = {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 3}}}}
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(weights),
        "callbacks": callbacks,
        "loops": loops,
        "optimizer_states": [optimizer],
        "hyper_parameters": {"lr": 0.1},
    }


def dino(state):
    """facebookresearch/dino: the student is wrapped for DDP, the teacher is not."""
    student = prefixed("module.", prefixed("backbone.", another(state)) | dino_head())
    return {
        "student": student,
        "teacher": prefixed("backbone.", state) | dino_head(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=0.1),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def dinov2_training(state):
    heads = {
        "dino_head.mlp.0.weight": torch.ones(7, D),
        "ibot_head.last_layer.weight": torch.ones(3),
    }
    models = {"student": another(state), "teacher": state}
    weights = {}
    for name, backbone in models.items():
        weights |= prefixed(f"{name}.", prefixed("backbone.", backbone) | heads)
        weights |= {f"{name}.backbone.mask_token": torch.zeros(1, D)}
    return {"model": weights | {"dino_loss.center": torch.zeros(1, 3)}, "iteration": 7}


def ibot(state):
    return {"state_dict": state | {"masked_embed": torch.zeros(1, D)}}


def byol(state):
    projector = {"projector.0.weight": torch.ones(3, D)}
    online = prefixed("online_network.", state | projector)
    target = prefixed("target_network.", another(state) | projector)
    return online | target | {"predictor.0.weight": torch.ones(3, 3)}


def timm_training(state):
    """With `--model-ema`, the average is what timm loads and validates."""
    args = argparse.Namespace(model="vit_tiny", mean=None)
    return {"state_dict": another(state), "state_dict_ema": state, "args": args, "metric": 76.7}


LAYOUTS = {
    "Lightning, model": lightning,
    "Lightning, net": lambda state: lightning(state, "net."),
    "Lightning of a compiled model": lambda state: lightning(state, "model._orig_mod."),
    "Lightning of a model in DDP": lambda state: lightning(state, "model.module."),
    "DDP": lambda state: {"model": prefixed("module.", state), "epoch": 3},
    "DDP, flat": lambda state: prefixed("module.", state) | {"epoch": 3},
    "torch.compile": lambda state: prefixed("_orig_mod.", state),
    "compiled, then DDP": lambda state: prefixed("module._orig_mod.", state),
    "DDP, then compiled": lambda state: prefixed("_orig_mod.module.", state),
    "compiled blocks": lambda state: {
        name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in state.items()
    },
    "mmpretrain": lambda state: {
        "meta": {"epoch": 3},
        "state_dict": prefixed("backbone.", state)
        | {"head.fc.weight": torch.ones(CLASSES, D), "head.fc.bias": torch.ones(CLASSES)},
    },
    "DINO": dino,
    "DINOv2 training": dinov2_training,
    "iBOT": ibot,
    "BYOL": byol,
    "timm training with an average": timm_training,
    "DeiT training with an average": lambda state: {"model": another(state), "model_ema": state},
    "an average alone": lambda state: {"model_ema": state},
    "Lightning with an average": lambda state: {
        "state_dict": prefixed("net.", another(state)) | prefixed("ema_net.", state)
    },
    "an average beside flat names": lambda state: state | prefixed("ema.", another(state)),
    "AveragedModel": lambda state: prefixed("module.", state) | {"n_averaged": torch.tensor(7)},
    "DeepSpeed": lambda state: {"module": state, "ds_version": "0.14", "global_steps": 3},
    "deep": lambda state: {"run": {"nets": {"vit": state}}, "seed": 0},
}


def flax(seed=0):
    """Google's arrays of a ViT of the same sizes."""
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return 0.2 * generator.standard_normal(shape, dtype=np.float32)

    arrays = {
        "cls": draw(1, 1, D),
        "embedding/kernel": draw(8, 8, 3, D),
        "embedding/bias": draw(D),
        "Transformer/posembed_input/pos_embedding": draw(1, 17, D),
        "Transformer/encoder_norm/scale": draw(D),
        "Transformer/encoder_norm/bias": draw(D),
        "head/kernel": draw(D, CLASSES),
        "head/bias": draw(CLASSES),
    }
    for block in range(DEPTH):
        prefix = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays |= {f"{prefix}/{norm}/{leaf}": draw(D) for leaf in ("scale", "bias")}
        attention = f"{prefix}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            arrays[f"{attention}/{part}/kernel"] = draw(D, HEADS, D // HEADS)
            arrays[f"{attention}/{part}/bias"] = draw(HEADS, D // HEADS)
        arrays |= {f"{attention}/out/kernel": draw(HEADS, D // HEADS, D)}
        arrays |= {f"{attention}/out/bias": draw(D)}
        for dense, (wide, narrow) in enumerate([(D, 4 * D), (4 * D, D)]):
            arrays[f"{prefix}/MlpBlock_3/Dense_{dense}/kernel"] = draw(wide, narrow)
            arrays[f"{prefix}/MlpBlock_3/Dense_{dense}/bias"] = draw(narrow)
    return arrays


def openai_clip(state):
    """The image tower of timm's names as openai/CLIP names it, beside a text tower."""
    names = (
        ("patch_embed.proj.weight", "conv1.weight"),
        ("blocks.", "transformer.resblocks."),
        ("norm_pre.", "ln_pre."),
        ("norm1.", "ln_1."),
        ("norm2.", "ln_2."),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj.", "attn.out_proj."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
    )
    weights = {}
    for name, value in state.items():
        theirs = "ln_post" + name.removeprefix("norm") if name.startswith("norm.") else name
        for ours, clip in names:
            theirs = theirs.replace(ours, clip)
        weights[theirs] = value
    weights["class_embedding"] = weights.pop("cls_token")[0, 0]
    weights["positional_embedding"] = weights.pop("pos_embed")[0]
    text = {"token_embedding.weight": torch.ones(9, D), "text_projection": torch.ones(D, D)}
    text |= {"transformer.resblocks.0.ln_1.weight": torch.ones(D), "logit_scale": torch.tensor(4.6)}
    return prefixed("visual.", weights | {"proj": torch.ones(D, 3)}) | text


def saved(path, stored):
    torch.save(stored, path / "weights.pth")
    return path / "weights.pth"


def assert_same_function(model, published, images):
    with torch.no_grad():
        assert torch.equal(model(images), published(images))


def refusal(model, path):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def resampled_by_hand(pos_embed, prefix, size):
    """As timm does: bicubic, antialiased, the tokens before the patches as they are."""
    side = round((pos_embed.shape[1] - prefix) ** 0.5)
    grid = pos_embed[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=size, mode="bicubic", antialias=True)
    return torch.cat([pos_embed[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
