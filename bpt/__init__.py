"""Prompt tuning of Vision Transformers, with what `burst` finds out about their attention.

So far the parts: how a prompt is parameterised, which blocks get one, and the prompted model.
"""

from bpt.model import PromptedViT
from bpt.placement import parse_placement
from bpt.prompt import (
    METHODS,
    BilinearPrompt,
    PlainPrompt,
    PromptModule,
    PromptOptions,
    WhitenedPrompt,
    build_prompt,
)
from bpt.tokens import prompt_tokens

__all__ = [
    "METHODS",
    "BilinearPrompt",
    "PlainPrompt",
    "PromptModule",
    "PromptOptions",
    "PromptedViT",
    "WhitenedPrompt",
    "build_prompt",
    "parse_placement",
    "prompt_tokens",
]
