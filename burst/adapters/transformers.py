"""What the attention classes of Hugging Face transformers have in common.

Their classes are spelled out for each architecture, and from one version to another they move and
change their names, so that what is known here is a table of names: of versions 4.56 to 5.x.

transformers_vision  image, video and sound
transformers_text    text, and both at once
"""

from collections.abc import Iterator

from torch import Tensor

from burst.adapters.linear import Linear, separate
from burst.adapters.registry import (
    QUERY_KEY_NORM,
    UNSCORED,
    Attention,
    AttentionLayout,
    full_name,
)
from burst.errors import UnsupportedModel

CLAMPED = f"it clamps queries and keys (clip_qkv), {UNSCORED}"


def classes(kinds: str, *suffixes: str) -> Iterator[str]:
    """Full names, of "vit:ViT swin:Swin", say, with each suffix, "Attention" if none is given.

    A kind is a folder of `transformers.models` and what its classes begin with; if the module is
    called otherwise than the folder, both are given: "data2vec.data2vec_vision:Data2VecVision".
    """
    for kind in kinds.split():
        path, _, name = kind.partition(":")
        folder, _, module = path.partition(".")
        for suffix in suffixes or ("Attention",):
            yield f"transformers.models.{folder}.modeling_{module or folder}:{name}{suffix}"


def weights(
    attention: Attention, query: str, key: str, *, omitted: tuple[str, ...] = ()
) -> AttentionLayout:
    """Queries and keys of a linear map each; what else is asked, as the class says it.

    Raises:
        UnsupportedModel: queries and keys are normalised or clamped.
    """
    check_bilinear(attention)
    return separate(
        attention,
        query,
        key,
        heads=number_of_heads(attention),
        group=getattr(attention, "num_key_value_groups", 1),
        scale=scale(attention),
        omitted=omitted,
    )


def check_bilinear(attention: Attention) -> None:
    """Refuse what some of these classes do to queries and keys if their configuration asks for it.

    Raises:
        UnsupportedModel: queries and keys are normalised or clamped.
    """
    if getattr(attention, "q_layernorm", None) is not None:
        raise UnsupportedModel(QUERY_KEY_NORM)
    for owner in (attention, getattr(attention, "config", None)):
        if getattr(owner, "clip_qkv", None):
            raise UnsupportedModel(CLAMPED)


def number_of_heads(attention: Attention) -> int:
    """h, by whichever of its names the attention knows it, or else its configuration."""
    for owner in (attention, getattr(attention, "config", None)):
        for name in ("num_attention_heads", "num_heads", "n_heads"):
            if isinstance(heads := getattr(owner, name, None), int):
                return heads
    raise UnsupportedModel("it does not say how many heads it has")


def scale(attention: Attention) -> float | None:
    """What the attention multiplies q k^T by, if it says so."""
    known: float | None = getattr(attention, "scaling", getattr(attention, "scale", None))
    return known


def other_linear(attention: Attention, name: str, kind: str) -> Linear:
    """A linear map of a class of transformers' own, as it keeps it.

    Raises:
        UnsupportedModel: it is something else, such as a LoRA adapter or a quantised layer.
    """
    found = attention.get_submodule(name)
    if full_name(type(found)) != kind:
        raise UnsupportedModel(
            f"{name} is a {type(found).__name__}, expected {kind.partition(':')[2]}; merge "
            "adapters such as LoRA into the weights and dequantise them"
        )
    return Linear(found.weight, found.bias)


def interleaved(
    packed: Linear, heads: int, group: int, *, scale: float | None, omitted: tuple[str, ...]
) -> AttentionLayout:
    """A layout whose rows are, for each key head, its queries, its key and its value.

    Raises:
        UnsupportedModel: the rows do not divide into heads.
    """
    rows, rest = divmod(packed.weight.shape[0], heads // group * (group + 2))
    if rest:
        raise UnsupportedModel(
            f"its weight {tuple(packed.weight.shape)} does not divide into {heads} heads with "
            f"{group} to a key; pass the whole model, not a shard"
        )

    def parts(x: Tensor | None, wanted: slice) -> Tensor | None:
        if x is None:
            return None
        by_head = x.view(heads // group, group + 2, rows, *x.shape[1:])
        return by_head[:, wanted].flatten(0, 2)

    queries, keys = slice(None, group), slice(group, group + 1)
    query, key = parts(packed.weight, queries), parts(packed.weight, keys)
    assert query is not None and key is not None
    return AttentionLayout(
        query=query,
        key=key,
        query_bias=parts(packed.bias, queries),
        key_bias=parts(packed.bias, keys),
        heads=heads,
        group=group,
        scale=scale,
        omitted=omitted,
    )
