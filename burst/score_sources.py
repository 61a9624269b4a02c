"""Functions of torch that take a softmax over keys -> the scores that they are given."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from burst.adapters.registry import read_layout
from burst.errors import BurstError, UnsupportedModel
from burst.score_tiles import Given, Product, Source

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]

HEADS = ("num_attention_heads", "num_heads", "n_heads", "heads")
SOFTMAX = (functional.softmax, torch.softmax, torch.special.softmax, Tensor.softmax)
MULTI_HEAD = tuple(inspect.signature(functional.multi_head_attention_forward).parameters)
MODULE = tuple(inspect.signature(nn.MultiheadAttention.forward).parameters)[1:]
LAYER = tuple(inspect.signature(nn.TransformerEncoderLayer.forward).parameters)[1:]


@dataclass(frozen=True)
class Sources:
    """Reads what one attention gives to torch.

    Attributes:
        attention: the module.
        label: what error messages call it.

    Raises (all methods):
        UnsupportedModel: it is not known which scores are of one head; or a nested tensor.
    """

    attention: nn.Module
    label: str

    def of_function(self, function: object, args: Args, kwargs: Kwargs) -> Source | None:
        """The scores that a function is about to be given; None if it takes no softmax of them."""
        if function in SOFTMAX:
            return self._softmax(*args, **kwargs)
        if function is functional.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if function is functional.multi_head_attention_forward:
            return self._multi_head(dict(zip(MULTI_HEAD, args, strict=False)) | kwargs)
        return None

    def of_module(self, args: Args, kwargs: Kwargs) -> Source:
        """Those of an `nn.MultiheadAttention` that is called so; it may compute in one kernel."""
        given = dict(zip(MODULE, args, strict=False)) | kwargs
        module: Any = self.attention
        if module.batch_first and given["query"].ndim == 3:
            given |= {name: given[name].transpose(0, 1) for name in ("query", "key")}
        names = ("num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "add_zero_attn")
        weights = {name: getattr(module, name) for name in names}
        separate = {name: getattr(module, name) for name in ("q_proj_weight", "k_proj_weight")}
        return self._multi_head(given | weights | separate)

    def of_layer(self, tokens: Callable[[Tensor], Tensor], args: Args, kwargs: Kwargs) -> Source:
        """Those of an `nn.TransformerEncoderLayer` that is called so; `tokens` are its own."""
        given = dict(zip(LAYER, args, strict=False)) | kwargs
        self._check_plain(given["src"])
        x = tokens(given["src"])
        masks = ("src_mask", "attn_mask"), ("src_key_padding_mask", "key_padding_mask")
        renamed = {new: given.get(old) for old, new in masks}
        return self.of_module((), {"query": x, "key": x, **renamed})

    def _softmax(
        self, input: Tensor, dim: int | None = None, *_: object, **__: object
    ) -> Source | None:
        """Over anything but keys it is none of scores."""
        if input.ndim < 3 or dim not in (-1, input.ndim - 1) or not input.is_floating_point():
            return None
        x = self._by_head(input.detach())
        return Given(x, self._head_axis(x))

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Source:
        self._check_plain(query)
        masks = [] if attn_mask is None else [attn_mask.expand(*query.shape[:-1], key.shape[-2])]
        q, k, *masks = (self._by_head(x.detach()) for x in (query, key, *masks))
        return Product(
            q=q,
            k=k,
            axis=self._head_axis(q),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            masks=tuple(masks),
            causal=is_causal,
        )

    def _multi_head(self, given: Kwargs) -> Source:
        """Those of `functional.multi_head_attention_forward`, made once more."""
        self._check_plain(given["query"])
        with torch.no_grad():
            q, k = projected(given)
            masks = tuple(mask.expand(*q.shape[:-1], k.shape[-2]) for mask in masks_of(given, q, k))
        scale = q.shape[-1] ** -0.5
        return Product(q, k, 1, scale, masks, causal=False)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B h, n, ...) as (B, h, n, ...)."""
        if x.ndim != 3:
            return x
        if self._heads is None or x.shape[0] % self._heads:
            raise UnsupportedModel(
                f"{self.label} has scores of {tuple(x.shape)}, and which of them are of one head "
                "is not known; leave this block out"
            )
        return x.reshape(-1, self._heads, *x.shape[1:])

    def _head_axis(self, x: Tensor) -> int:
        """1, but of windows, which may stand before the heads or behind them."""
        axes = range(1, x.ndim - 2)
        found = [axis for axis in axes if self._heads in (None, x.shape[axis])]
        if len(found) != 1:
            raise UnsupportedModel(
                f"{self.label} has {self._heads or 'an unknown number of'} heads, and which axis "
                f"of {tuple(x.shape)} they are is not known; leave this block out"
            )
        return found[0]

    @cached_property
    def _heads(self) -> int | None:
        """As the adapter counts them, or else as the attention says."""
        with suppress(BurstError):
            return read_layout(self.attention).heads
        for owner in (self.attention, getattr(self.attention, "config", None)):
            for name in HEADS:
                if isinstance(heads := getattr(owner, name, None), int):
                    return heads
        return None

    def _check_plain(self, x: Tensor) -> None:
        if x.is_nested:
            raise UnsupportedModel(
                f"{self.label} reads a nested tensor, expected tokens (B, N, d); set "
                "`use_nested_tensor` of its nn.TransformerEncoder to False"
            )


def projected(given: Kwargs) -> tuple[Tensor, Tensor]:
    """(B, h, n, d_h) queries and keys of `functional.multi_head_attention_forward`."""
    x, y = (given[name] for name in ("query", "key"))
    x, y = (one[:, None] if one.ndim == 2 else one for one in (x, y))
    d, heads, bias = x.shape[-1], given["num_heads"], given["in_proj_bias"]
    weights = given["q_proj_weight"], given["k_proj_weight"]
    if not given.get("use_separate_proj_weight", given["in_proj_weight"] is None):
        weights = given["in_proj_weight"][:d], given["in_proj_weight"][d : 2 * d]
    biases = (None, None) if bias is None else (bias[:d], bias[d : 2 * d])
    q, k = (functional.linear(*one) for one in zip((x, y), weights, biases, strict=True))
    if given["bias_k"] is not None:
        k = torch.cat([k, given["bias_k"].to(k.dtype).expand(1, *k.shape[1:])])
    if given["add_zero_attn"]:
        k = torch.cat([k, k.new_zeros(1, *k.shape[1:])])
    q, k = (one.reshape(*one.shape[:2], heads, -1).permute(1, 2, 0, 3) for one in (q, k))
    return q, k


def masks_of(given: Kwargs, q: Tensor, k: Tensor) -> list[Tensor]:
    """Its masks, to be expanded to (B, h, n_q, n_k): bool, True where a key may be seen; or added.

    Its own bool masks say the opposite. Extra keys, which are the last, are seen by all.
    """
    masks = []
    if (mask := given.get("attn_mask")) is not None:
        masks.append(mask.unflatten(0, q.shape[:2]) if mask.ndim == 3 else mask)
    if (mask := given.get("key_padding_mask")) is not None:
        masks.append(mask[None, None, None] if mask.ndim == 1 else mask[:, None, None])
    masks = [~mask if mask.dtype == torch.bool else mask for mask in masks]
    return [
        functional.pad(mask, (0, k.shape[2] - mask.shape[-1]), value=mask.dtype == torch.bool)
        for mask in masks
    ]
