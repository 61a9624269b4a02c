"""The optimiser and its parameter groups, the learning rate of each step, a moving average."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.optim.lars import Lars
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn

from bpt.adaptation import AdaptedViT
from bpt.fine_tuning import FineTunedViT, layer_decay_groups
from bpt.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with PyTorch's defaults; or SGD or LARS with momentum 0.9.

    LARS (You et al. 2017, arXiv 1708.03888, by timm) scales the gradient of a matrix, decayed or
    not, to 0.001 of the matrix's norm, and leaves that of a vector alone, as MAE's util/lars.py.
    """
    groups, lr = parameter_groups(model, recipe), recipe.peak_lr
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    lars: torch.optim.Optimizer = Lars(_adapted(groups), lr=lr, momentum=0.9)
    return lars


def _adapted(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each group cut into matrices, which timm's LARS adapts even undecayed, and vectors."""
    return [
        {**group, "params": params, "always_adapt": matrices}
        for group in groups
        for matrices in (True, False)
        if (params := [p for p in group["params"] if (p.ndim > 1) == matrices])
    ]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """What is trained, for the optimiser: matrices of prompts, the head's matrix, vectors.

    Prompts decay by `weight_decay`, the head by `head_weight_decay`, vectors, with gates and
    temperatures, not at all. For full fine-tuning see `layer_decay_groups`; where little of a
    backbone is trained, all matrices decay by `weight_decay`. Frozen parameters are in no group.

    Source: WangYZ1608/BPT, utils.py:60-80.
    """
    if isinstance(model, FineTunedViT):
        return layer_decay_groups(
            model, weight_decay=recipe.weight_decay or 0.0, layer_decay=recipe.layer_decay
        )
    head_decay = recipe.head_weight_decay
    if isinstance(model, AdaptedViT):
        head_decay = recipe.weight_decay
    groups: dict[str, dict[str, Any]] = {
        "prompts": {"weight_decay": recipe.weight_decay, "params": []},
        "head": {"weight_decay": head_decay, "params": []},
        "vectors": {"weight_decay": 0.0, "params": []},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "head" if name.startswith("head.") else "prompts"
            groups["vectors" if parameter.ndim <= 1 else kind]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> CosineLRScheduler:
    """The learning rate of each step: `step_update(step)` sets that of step `step`, from 0.

    On the fractional epoch e = step / steps_per_epoch it is lr e / w in the w epochs of the
    warm-up, so the first step moves nothing, then
    min_lr + (lr - min_lr) (1 + cos(pi (e - w) / (epochs - w))) / 2.

    Source: WangYZ1608/BPT, utils.py:45-57.
    """
    warmup = (recipe.warmup_epochs or 0) * steps_per_epoch
    falling = recipe.total_epochs * steps_per_epoch - warmup
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, falling),  # a single step has the peak's rate; of 1 timm warns
        lr_min=recipe.min_lr,
        warmup_t=warmup,
        warmup_lr_init=0.0,
        warmup_prefix=True,
        t_in_epochs=False,
    )


class MovingAverage:
    """The exponential moving average of trained tensors, and of nothing else.

    After n updates the decay is min(decay, (1 + n) / (10 + n)), so that a short training's average
    forgets its start. (The authors average a copy of the whole model, and never use it.)

    Args:
        values: tensors by name, where the average starts; they are copied.
        decay: share of the average that a step keeps at most, 0..1.
    """

    def __init__(self, values: Mapping[str, Tensor], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: value.detach().clone() for name, value in values.items()}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Take in the values after a step: by the same names, of the same shapes."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.values.items():
            average.lerp_(values[name], 1 - decay)

    def state(self) -> dict[str, Any]:
        """What `load` takes, on the CPU or wherever the tensors are."""
        return {"updates": self.updates, "values": self.values}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.updates = state["updates"]
        for name, average in self.values.items():
            average.copy_(state["values"][name])
