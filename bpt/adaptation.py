"""Parameter-efficient fine-tuning: a frozen copy of a backbone, and little in it that is trained.

BitFitViT    all biases
AdapterViT   a bottleneck behind each block's MLP
PeftViT      whatever the peft library puts into it, such as LoRA
"""

import copy
from collections import OrderedDict
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpt.fine_tuning import FineTunedViT, TunedViT
from burst.backbone import Backbone
from burst.errors import BurstError, UnsupportedModel
from burst.loading.common import first_line, required, seeded

# Of LoRA. Source: Steitz & Roth 2024, arXiv 2406.06820, visinf/adapter_plus, conf/lora/.
LORA_TARGETS, LORA_DROPOUT = r"blocks\.\d+\.attn\.qkv", 0.1


class AdaptedViT(TunedViT):
    """A frozen copy of a backbone with a linear head; what is trained of it, subclasses say.

    What was pretrained stays in eval mode also in training; what is put into it does not.

    Args:
        backbone, num_classes: see `TunedViT`.
        **options: pooling, head_std, checkpoint_activations, generator: see there.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(backbone, num_classes, **options)
        self.vit.eval().requires_grad_(False)
        self._pretrained = list(self.vit.modules())

    def train(self, mode: bool = True) -> Self:
        """Training mode of head and additions; the pretrained layers stay in eval mode."""
        super().train(mode)
        for module in self._pretrained:
            module.training = False
        return self


class BitFitViT(AdaptedViT):
    """All biases of a backbone are trained: of patches, norms, attention, MLPs; and a head.

    Args:
        backbone, num_classes: see `TunedViT`.
        **options: pooling, head_std, checkpoint_activations, generator: see there.

    Raises:
        UnsupportedModel: no bias in it; or see `TunedViT`.

    Source: Ben Zaken et al. 2022, "BitFit", arXiv 2106.10199.
    """

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:  # noqa: ANN401
        super().__init__(backbone, num_classes, **options)
        biases = [p for name, p in self.vit.named_parameters() if name.split(".")[-1] == "bias"]
        if not biases:
            raise UnsupportedModel(f"{backbone.name} has no bias to train")
        for bias in biases:
            bias.requires_grad_(True)


class Adapter(nn.Module):
    """x + U gelu(D x + b) + c for (..., d) tokens x, with D (r, d) and U (d, r).

    U, b and c start at 0, so that nothing changes at first; D as PyTorch's linear layers do.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        changed: Tensor = x + self.up(functional.gelu(self.down(x)))
        return changed


class AdapterViT(AdaptedViT):
    """An adapter on what each block's MLP adds to the tokens, behind its layer scale if any.

    Args:
        backbone, num_classes, generator: see `TunedViT`.
        **options: pooling, head_std, checkpoint_activations: see there.
        bottleneck: r, numbers between an adapter's two matrices.

    Raises:
        BurstError: `bottleneck` is not positive.
        UnsupportedModel: blocks without one MLP branch; or see `TunedViT`.

    Source: Houlsby et al. 2019, arXiv 1902.00751; one in each block, as Pfeiffer et al. 2021,
    arXiv 2005.00247, and the comparison of Jia et al. 2022, arXiv 2203.12119, have it.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        bottleneck: int = 8,
        generator: torch.Generator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        if bottleneck < 1:
            raise BurstError(f"bottleneck is {bottleneck}; it must be at least 1")
        super().__init__(backbone, num_classes, generator=generator, **options)
        with seeded(_drawn(generator)):
            for block in self.vit.blocks:
                scale = getattr(block, "ls2", None)
                if not isinstance(scale, nn.Module):
                    kind = type(block).__name__
                    raise UnsupportedModel(
                        f"blocks of {backbone.name} are of class {kind}, which has no one branch "
                        "for an adapter to follow"
                    )
                adapter = Adapter(self.vit.embed_dim, bottleneck)
                block.ls2 = nn.Sequential(OrderedDict(scale=scale, adapter=adapter))


class PeftViT(AdaptedViT):
    """What the peft library puts into the layers of a backbone is trained, and a head.

    It is built on the CPU, wherever the backbone is. What peft draws at the start and does not
    train, such as the projections of VeRA, is not among what is kept: the same configuration and
    generator make it anew.

    Args:
        backbone, num_classes, generator: see `TunedViT`.
        **options: pooling, head_std, checkpoint_activations: see there.
        config: of a tuner of peft that works inside layers, such as
            `peft.LoraConfig(target_modules=["attn.qkv"])`; it stays as it is.

    Raises:
        BurstError: peft is not installed, or `config` is none of its configurations.
        UnsupportedModel: peft cannot put this tuner into a ViT, or the tuner needs more than the
            layers' own forward pass; or see `TunedViT`.

    Source: https://github.com/huggingface/peft; LoRA: Hu et al. 2022, arXiv 2106.09685.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: Any,  # noqa: ANN401  a peft.PeftConfig
        num_classes: int,
        *,
        generator: torch.Generator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        check_peft(config)
        super().__init__(backbone, num_classes, generator=generator, **options)
        self.vit.cpu()  # where it starts from the same numbers, whatever the device
        self.tuner = type(config).__name__.removesuffix("Config")
        # In a tuple: its parameters are those of `vit`, by other names.
        self._peft = (self._injected(copy.deepcopy(config), _drawn(generator)),)

    @property
    def peft_model(self) -> Any:  # noqa: ANN401  a peft.PeftModel
        """What peft gave, whose layers are those of `vit`: to save an adapter in peft's format."""
        return self._peft[0]

    def merged(self) -> FineTunedViT:
        """The same function in plain weights, without peft, on the device and in the mode it is in.

        Raises:
            UnsupportedModel: what this tuner learns is no change of weights.
        """
        try:
            vit = copy.deepcopy(self.peft_model).merge_and_unload()
        except Exception as error:  # tuners raise anything
            raise self._cannot_merge(first_line(error)) from error
        if vit.state_dict().keys() != self.info.model.state_dict().keys():
            raise self._cannot_merge("layers of its own are left")
        model = FineTunedViT(
            replace(self.info, model=vit),
            self.head.out_features,
            pooling=self.pooling,
            drop_path=0.0,
            generator=torch.Generator(),  # else it draws from the global one
        )
        model.head.load_state_dict(self.head.state_dict())
        return model.to(self.head.weight.device).train(self.training)

    def _injected(self, config: Any, seed: int) -> Any:  # noqa: ANN401  a peft.PeftModel
        import peft

        norm = type(self.vit.norm)
        try:
            with seeded(seed):
                tuned = peft.get_peft_model(self.vit, config)
        except Exception as error:  # tuners raise anything
            raise self._cannot_put(first_line(error)) from error
        inside = {id(parameter) for parameter in self.vit.parameters() if parameter.requires_grad}
        trained = {id(parameter) for parameter in tuned.parameters() if parameter.requires_grad}
        if not inside:
            raise self._cannot_put("nothing is trained")
        if trained != inside:
            raise self._cannot_put("it trains more than layers")
        if norm is nn.Identity and not isinstance(self.vit.norm, nn.Identity):
            raise self._cannot_put("the final norm is fc_norm; name it instead of norm")
        return tuned

    def _cannot_put(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"peft cannot put {self.tuner} into {self.info.name} ({why})")

    def _cannot_merge(self, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"peft cannot turn {self.tuner} into plain weights ({why})")


def lora_config(rank: int) -> Any:  # noqa: ANN401  a peft.LoraConfig
    """LoRA on the one matrix of queries, keys and values of each block, alpha = r.

    So W becomes W + B A, with A (r, d) shared by the three and B (3 d, r), and 4 r d numbers of a
    block are trained.

    Args:
        rank: r.

    Raises:
        BurstError: peft is not installed, or r is not positive.
    """
    peft = required("peft", "peft")
    if rank < 1:
        raise BurstError(f"the rank of LoRA is {rank}; it must be at least 1")
    return peft.LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=LORA_DROPOUT, target_modules=LORA_TARGETS
    )


def check_peft(config: Any) -> None:  # noqa: ANN401
    """Refuse what is no configuration of a tuner that works inside layers.

    Raises:
        BurstError: it is none of peft's, or peft is not installed.
        UnsupportedModel: it is one for prompts of a language model.
    """
    peft = required("peft", "peft")
    if not isinstance(config, peft.PeftConfig) or config.peft_type is None:
        raise BurstError(
            f"{type(config).__name__} is no configuration of a tuner of peft, such as LoraConfig"
        )
    if config.is_prompt_learning:
        raise UnsupportedModel(
            f"{type(config).__name__} is for tokens of a language model; prompts of a ViT are made "
            "by PromptedViT"
        )


def _drawn(generator: torch.Generator | None) -> int:
    """A seed."""
    return int(torch.randint(2**62, (), generator=generator))
