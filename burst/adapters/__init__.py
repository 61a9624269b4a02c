"""The one door through which models come in: what is known of their attention classes.

registry   adapters by class; `adapter` teaches one of your own
blocks     the attention blocks of a model, and whether they can be measured
timm, ...  the classes of a library each; none of these libraries is imported
"""

from burst.adapters import open_clip, timm, torch, transformers_text, transformers_vision
from burst.adapters.blocks import (
    AttentionBlock,
    BlockDescription,
    OmittedTermWarning,
    SkippedBlock,
    describe_blocks,
    find_blocks,
    measurable_blocks,
    num_prefix_tokens,
    prefix_tokens_of,
    select_blocks,
    unwrap,
    warn_of_omissions,
)
from burst.adapters.registry import AttentionLayout, adapter, prefix_tokens, refuse

__all__ = [
    "AttentionBlock",
    "AttentionLayout",
    "BlockDescription",
    "OmittedTermWarning",
    "SkippedBlock",
    "adapter",
    "describe_blocks",
    "find_blocks",
    "measurable_blocks",
    "num_prefix_tokens",
    "open_clip",
    "prefix_tokens",
    "prefix_tokens_of",
    "refuse",
    "select_blocks",
    "timm",
    "torch",
    "transformers_text",
    "transformers_vision",
    "unwrap",
    "warn_of_omissions",
]
