"""A ViT as a detector's backbone: (B, 3, S, S) -> (B, d, S/p, S/p), patches of its last block.

All attention is global, padding is attended to like the rest, and prompts, class token and
registers are left behind. There is no norm behind the last block, as in ViTDet.
"""

import copy
import dataclasses
from collections.abc import Mapping

from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from bpt.fine_tuning import drop_paths
from bpt.gates import Gates
from bpt.model import PromptedTokens, TrainedModule, plain_vit, run_block
from bpt.prompt import PromptModule
from burst.adapters import num_prefix_tokens
from burst.backbone import Backbone
from burst.errors import ShapeError, UnsupportedModel

PATCHES = {8: 8, 14: 16, 16: 16}  # pixels of a patch -> of the detector's
GRID = 64  # patches across an image, where nobody asks for another size


def detection_backbone(backbone: Backbone, image_size: int) -> Backbone:
    """The backbone as one for images of another size; its weights are shared, and stay as they are.

    Position embeddings are resized to the new grid, bicubic and without antialiasing, as
    detectron2 does. A patch of 14 pixels becomes one of 16 (Beyer et al. 2023, arXiv 2212.08013),
    for the strides of a pyramid.

    Args:
        backbone: its model must be a timm VisionTransformer with patches of 8, 14 or 16 pixels.
        image_size: S, a multiple of 64.

    Raises:
        UnsupportedModel: another class of model, or other patches.
        ShapeError: a size that is no multiple of 64.
    """
    if image_size < 64 or image_size % 64:
        raise ShapeError(f"image_size is {image_size}; it must be a multiple of 64, such as 512")
    vit, patch = plain_vit(backbone), detector_patch(backbone)
    shared = {id(parameter): parameter for parameter in vit.parameters()}
    resized: VisionTransformer = copy.deepcopy(vit, shared)
    embed, before = resized.patch_embed, resized.patch_embed.grid_size
    embed.set_input_size(img_size=(image_size, image_size), patch_size=(patch, patch))
    embed.strict_img_size = True
    if resized.pos_embed is not None:
        positions = resample_abs_pos_embed(
            resized.pos_embed.detach(),
            new_size=embed.grid_size,
            old_size=before,
            num_prefix_tokens=0 if resized.no_embed_class else resized.num_prefix_tokens,
            antialias=False,
        )
        resized.pos_embed = nn.Parameter(positions, requires_grad=False)
    return dataclasses.replace(
        backbone, model=resized.requires_grad_(False), image_size=(image_size, image_size)
    )


def detector_patch(backbone: Backbone) -> int:
    """p, pixels of a patch of the detector.

    Raises:
        UnsupportedModel: no pyramid is made of such patches.
    """
    patch = plain_vit(backbone).patch_embed.patch_size
    if patch[0] != patch[1] or patch[0] not in PATCHES:
        raise UnsupportedModel(
            f"{backbone.name} has patches of {patch[0]} x {patch[1]} pixels; detectors are made on "
            f"square ones of {', '.join(map(str, PATCHES))}"
        )
    return PATCHES[patch[0]]


class PromptedMap(PromptedTokens):
    """A frozen ViT with prompts, as a map; without prompts, of frozen features.

    Args:
        backbone: from `detection_backbone`.
        prompts, after, dropout, gates: see `PromptedTokens`.
        checkpoint_activations: see `Machine`.

    Raises:
        UnsupportedModel, ShapeError, UnknownName: see `PromptedTokens`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Mapping[int, PromptModule],
        *,
        after: str = "carry",
        dropout: float = 0.0,
        gates: Gates | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(backbone, prompts, after=after, dropout=dropout, gates=gates)
        self.checkpoint_activations = checkpoint_activations
        self.stride = int(self.vit.patch_embed.patch_size[0])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, d, S/p, S/p), p pixels of a patch."""
        x, present = self.tokens(images)
        return _as_map(x[:, self.prefix + present :], self.vit.patch_embed.grid_size)

    def folded(self) -> "PromptedMap":
        """The same function with every prompt as plain tokens; the backbone is shared."""
        gates = copy.deepcopy(self.gates)
        plain = PromptedMap(self.info, self.plain_prompts(), after=self.after, gates=gates)
        return plain.train(self.training)


class FineTunedMap(TrainedModule):
    """A copy of a ViT, all of it trained but for the norm that is not used.

    Args:
        backbone: from `detection_backbone`; it stays as it is.
        drop_path: see `bpt.FineTunedViT`.
        checkpoint_activations: see `PromptedMap`.

    Raises:
        UnsupportedModel: another class of model than timm's VisionTransformer.
    """

    def __init__(
        self, backbone: Backbone, *, drop_path: float = 0.1, checkpoint_activations: bool = False
    ) -> None:
        super().__init__()
        self.vit = copy.deepcopy(plain_vit(backbone)).requires_grad_(True)
        self.info, self.checkpoint_activations = backbone, checkpoint_activations
        self.prefix = num_prefix_tokens(self.vit)
        self.width = int(self.vit.embed_dim)
        self.stride = int(self.vit.patch_embed.patch_size[0])
        self.vit.norm.requires_grad_(False)
        self.vit.fc_norm.requires_grad_(False)
        drop_paths(self.vit, drop_path)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, d, S/p, S/p), p pixels of a patch."""
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        for block in self.vit.blocks:
            x = run_block(block, x, checkpointed=self.checkpoint_activations)
        return _as_map(x[:, self.prefix :], self.vit.patch_embed.grid_size)


Trunk = PromptedMap | FineTunedMap


def _as_map(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    return patches.mT.reshape(*patches.shape[::2], *grid)
