"""Full fine-tuning: every weight of the backbone trained, lower layers slower."""

import copy
import re
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from bpt.heads import started_head
from bpt.model import TrainedModule, plain_vit, run_block
from bpt.pooling import choose_pooling, pool
from burst.adapters import num_prefix_tokens
from burst.backbone import Backbone


class TunedViT(TrainedModule):
    """A copy of a backbone with a linear head; what is trained of the copy, subclasses say.

    Args:
        backbone: its model must be a timm VisionTransformer; it stays as it is.
        num_classes: outputs of the head.
        pooling: see `PromptedViT`; without prompts, "prompts+patches" is the mean of the patches.
        head_std: of the head's truncated normal start; its bias starts at 0.
        checkpoint_activations: see `Machine`.
        generator: of the head's start; with one the global random state is left alone.

    Raises:
        UnsupportedModel: another class of model, or a pooling that it cannot have.
        UnknownName: a pooling that is not known.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pooling: str = "default",
        head_std: float = 0.02,
        checkpoint_activations: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.vit = copy.deepcopy(plain_vit(backbone))
        self.info, self.checkpoint_activations = backbone, checkpoint_activations
        self.prefix = num_prefix_tokens(self.vit)
        self.pooling = choose_pooling(backbone, pooling)
        width = self.vit.embed_dim
        self.head = started_head(nn.Linear, width, num_classes, head_std, generator)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images -> (B, num_classes) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, d): what the head reads of (B, 3, H, W) normalised images."""
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        for block in self.vit.blocks:
            x = run_block(block, x, checkpointed=self.checkpoint_activations)
        return pool(self.vit, x, self.pooling, prefix=self.prefix)


class FineTunedViT(TunedViT):
    """A copy of a backbone with a linear head, all of it trained.

    Args:
        backbone, num_classes, pooling, head_std, checkpoint_activations, generator: see `TunedViT`.
        drop_path: chance to skip the last block's branches in training; it falls linearly to 0 at
            the first block (Huang et al. 2016, arXiv 1603.09382).

    Raises:
        UnsupportedModel, UnknownName: see `TunedViT`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        pooling: str = "default",
        drop_path: float = 0.1,
        head_std: float = 2e-5,
        checkpoint_activations: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            backbone,
            num_classes,
            pooling=pooling,
            head_std=head_std,
            checkpoint_activations=checkpoint_activations,
            generator=generator,
        )
        # Its final norm trains; of timm's two places for one, only the pretrained is in use.
        self.vit.requires_grad_(True)
        drop_paths(self.vit, drop_path)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which parameters make a layer, as timm asks."""
        return layers_of("vit", coarse=coarse)


def drop_paths(vit: VisionTransformer, rate: float) -> None:
    """Give the blocks stochastic depth: `rate` in the last, falling linearly to 0 in the first."""
    blocks = vit.blocks
    for block, one in zip(blocks, torch.linspace(0, rate, len(blocks)), strict=True):
        block.drop_path1, block.drop_path2 = DropPath(float(one)), DropPath(float(one))


def layers_of(vit: str, *, coarse: bool) -> dict[str, str]:
    """Which parameters make a layer, as timm's `group_matcher` says it.

    What neither names is behind the blocks. (timm's own of a VisionTransformer counts the final
    norm to the last block, and registers to the head.)

    Args:
        vit: name of the ViT in its model.
        coarse: whether all blocks are one layer.
    """
    name = re.escape(vit)
    stem = rf"^{name}\.(?:patch_embed|pos_embed|cls_token|reg_token|norm_pre)"
    return {"stem": stem, "blocks": rf"^{name}\.blocks" + ("" if coarse else r"\.(\d+)")}


def layer_decay_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float, vit: str = "vit"
) -> list[dict[str, Any]]:
    """An optimiser's parameter groups whose learning rate falls towards the input.

    Of L blocks, layer 0 is what comes before them (patches, positions, class token, registers),
    layer i + 1 is block i, layer L + 1 the final norm and the head; the scale of layer l is
    `layer_decay`^(L + 1 - l). Vectors, positions, class token and registers do
    not decay.

    Args:
        model: has a `group_matcher`, as `layers_of` makes it.
        weight_decay: of matrices.
        layer_decay: see above.
        vit: name of the ViT in the model.

    Returns:
        Groups with `params`, `weight_decay` and `lr_scale`, by which timm's schedulers multiply
        the learning rate of each step; the optimiser alone does not.

    Source: He et al. 2022, arXiv 2111.06377, util/lr_decay.py; Clark et al. 2020, arXiv 2003.10555.
    """
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        model,
        weight_decay=weight_decay,
        no_weight_decay_list=[f"{vit}.{name}" for name in ("pos_embed", "cls_token", "reg_token")],
        layer_decay=layer_decay,
    )
    return groups
