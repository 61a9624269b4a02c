"""Which tokens are padding: a batch may bring several masks, and each speaks of one stack's tokens.

Where a model reads text and images, or has an encoder and a decoder, a mask is never laid on the
tokens of another stack, though they be as many.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from burst.errors import UnsupportedModel

OF_TOKENS = "attention_mask"
OF_DECODER = "decoder_attention_mask"
OF_PATCHES = ("pixel_attention_mask", "patch_attention_mask")
# Other names of `OF_TOKENS`: timm's NaFlex, of patches alone; and torch's, where True is padding.
VALID = "patch_valid"
PADDED = ("src_key_padding_mask", "key_padding_mask", "padding_mask")
TEXT = ("input_ids", "inputs_embeds")
TARGETS = ("decoder_input_ids", "decoder_inputs_embeds")
IMAGE_TOWERS = ("vision", "visual", "image")  # what the names of their modules begin with


@dataclass(frozen=True)
class Padding:
    """The masks of one batch.

    Attributes:
        masks: name -> (B, N) bool, False where a token is padding; only masks with such a token.
        given: the names of all that the model is called with.
        decodes: whether the model is an encoder with a decoder.
    """

    masks: Mapping[str, Tensor]
    given: frozenset[str]
    decodes: bool

    def keep(self, block: str) -> Tensor | None:
        """(B, N) bool of the tokens that a block of this name reads; None where all are kept.

        Raises:
            UnsupportedModel: a decoder whose tokens the model makes of padded ones.
        """
        parts = block.split(".")
        if self.decodes and "decoder" in parts:
            return self._of_decoder(block)
        if "pixel_values" not in self.given:
            return self.masks.get(OF_TOKENS)
        of_patches = next((self.masks[name] for name in OF_PATCHES if name in self.masks), None)
        if self.given.isdisjoint(TEXT):
            return self.masks.get(OF_TOKENS) if of_patches is None else of_patches
        if any(part.startswith(IMAGE_TOWERS) for part in parts):
            return of_patches
        return self.masks.get(OF_TOKENS)

    def _of_decoder(self, block: str) -> Tensor | None:
        if OF_TOKENS in self.masks and self.given.isdisjoint(TARGETS):
            raise UnsupportedModel(
                f"the model makes the tokens of {block} of padded ones: which of them are padding "
                f"is not known; give {TARGETS[0]} and {OF_DECODER}, or leave the decoder's blocks "
                "out"
            )
        return self.masks.get(OF_DECODER)


def padding_of(inputs: Mapping[str, Any], model: nn.Module) -> Padding:
    """The masks among the arguments of a model.

    A four-dimensional `attention_mask` is added to scores and no word on padding.
    """
    masks = {}
    for name in (*PADDED, VALID, OF_TOKENS, OF_DECODER, *OF_PATCHES):
        mask = inputs.get(name)
        if not isinstance(mask, Tensor) or not (mask.ndim == 2 or name in OF_PATCHES):
            continue
        keep = _kept(name, mask.flatten(1), model)
        if not bool(keep.all()):
            masks[OF_TOKENS if name in (*PADDED, VALID) else name] = keep
    config = getattr(model, "config", None)
    decodes = bool(getattr(config, "is_encoder_decoder", False)) or not set(TARGETS).isdisjoint(
        inputs
    )
    return Padding(masks, frozenset(inputs), decodes)


def _kept(name: str, mask: Tensor, model: nn.Module) -> Tensor:
    """Where the tokens of a (B, N) mask of this name are no padding."""
    if name in PADDED:
        return mask > -1 if mask.is_floating_point() else ~mask.bool()  # floats are added to scores
    if name == VALID:  # the tokens in front of the patches are all there
        front = getattr(model, "num_prefix_tokens", 0)
        return functional.pad(mask.bool(), (front, 0), value=True)
    return mask.bool()
