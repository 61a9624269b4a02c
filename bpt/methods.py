"""What can be trained on a backbone, which options each method makes use of, and its defaults."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bpt.prompt import PROMPT_METHODS
from burst.errors import BurstError

ADAPTED = ("lora", "adapter", "bitfit")  # parameter-efficient fine-tuning, see `bpt.adaptation`
METHODS = (*PROMPT_METHODS, "linear", "full", *ADAPTED)
"""What `Recipe.method` may be: prompts, a linear probe, fine-tuning, and what trains little."""
WHITENED = tuple(name for name in PROMPT_METHODS if name.startswith("bpt-"))
TRAINED_ON_IMAGES = tuple(name for name in METHODS if name != "linear")  # not on kept features
PLACED = tuple(name for name in PROMPT_METHODS if name != "gatevpt")  # which has one place
# The methods that make use of an option, where not all of them do.
USED_BY = {
    "placement": PLACED,
    "num_prompts": PROMPT_METHODS,
    "rank": ("bpt-bilinear",),
    "spt_tokens": ("spt",),
    "bilinear_init": ("bpt-bilinear",),
    "whitening": WHITENED,
    "prompt_scale": WHITENED,
    "null_gain": WHITENED,
    "floor": WHITENED,
    "shrinkage": WHITENED,
    "through_norm": WHITENED,
    "after": PLACED,
    "gate_init": ("gatevpt",),
    "prompt_dropout": ("vpt", "gatevpt"),
    "weight_decay": (*PROMPT_METHODS, "full", *ADAPTED),
    "head_weight_decay": (*PROMPT_METHODS, "linear"),
    "layer_decay": ("full",),
    "drop_path": ("full",),
    "bottleneck": ("lora", "adapter"),
    "checkpoint_activations": (*PROMPT_METHODS, "full", *ADAPTED),
    "mixup": TRAINED_ON_IMAGES,
    "cutmix": TRAINED_ON_IMAGES,
    "randaugment": TRAINED_ON_IMAGES,
    "random_erasing": TRAINED_ON_IMAGES,
    "head_norm": ("linear",),
    "views": TRAINED_ON_IMAGES,
}
# Where nobody asks for others. Prompts: the paper's, of CUB with MAE. Fine-tuning: the supplement's
# (Table 8), its learning rate scaled from 1,024 images a step to 32. Adapted: see recipes.toml.
PROMPT_DEFAULTS = {"lr": 5e-2, "weight_decay": 5e-3, "head_weight_decay": 0.5}
DEFAULTS = {
    "linear": {"lr": 1e-2, "weight_decay": 0.0, "head_weight_decay": 0.0},
    "full": {"lr": 1.25e-4, "weight_decay": 0.05, "head_weight_decay": 0.05},
    **{name: {"lr": 1e-3, "weight_decay": 1e-4, "head_weight_decay": 1e-4} for name in ADAPTED},
}


def used_by_any(given: Mapping[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """Those of the options that at least one of the methods makes use of."""
    return {name: given[name] for name in given if set(methods) & set(USED_BY.get(name, methods))}


def check_used(
    method: str, options: Iterable[str], used_by: Mapping[str, Sequence[str]] = USED_BY
) -> None:
    """Refuse an option that the method makes no use of.

    Args:
        method: one of `METHODS`.
        options: what was given.
        used_by: option -> the methods that use it, where not all of them do.

    Raises:
        BurstError: there is one; it is named, and the methods that use it.
    """
    for name in options:
        users = used_by.get(name, METHODS)
        if method not in users:
            others = [one for one in METHODS if one not in users]
            whom = f"all but {others[0]}" if len(others) == 1 else ", ".join(users)
            raise BurstError(
                f"method {method} makes no use of {name}, which is for {whom}; "
                "leave it out, or choose another method"
            )
