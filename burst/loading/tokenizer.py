"""The tokenizer of a transformers model -> what `burst.text` needs of it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from burst.errors import TextError
from burst.loading.common import Foreign, first_line
from burst.loading.hf_files import TOKENIZER, HfFiles, silent
from burst.text import Tokenizer

SAMPLE = "a"


def tokenizer_of(transformers: Foreign, files: HfFiles, model: nn.Module) -> Tokenizer:
    """How the model's own tokenizer cuts a text, and how long a text the model reads.

    Raises:
        TextError: there is none, it cannot be read without running code, or it is not the model's.
        CheckpointError: its files cannot be downloaded.
    """
    files.fetch(TOKENIZER)
    with silent(transformers):
        return _read(transformers, files, model)


def _read(transformers: Foreign, files: HfFiles, model: nn.Module) -> Tokenizer:
    try:
        found = transformers.AutoTokenizer.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raise anything
        raise TextError(
            f"{files.name} has no tokenizer to be read ({first_line(error)})"
        ) from error
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    return hf_tokenizer(
        files.name,
        found,
        max_length=min(found.model_max_length, _positions(model)),
        vocabulary=embeddings.num_embeddings,
    )


def hf_tokenizer(name: str, tokenizer: Foreign, **limits: Foreign) -> Tokenizer:
    """A tokenizer of transformers as `burst.text` uses it; `limits` as of `Tokenizer`.

    Raises:
        TextError: what it puts around a text cannot be told.
    """
    prefix, suffix = _around(name, tokenizer)
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((one for one in ids if one is not None), 0)
    encode = partial(_encode, tokenizer)
    return Tokenizer(encode=encode, prefix=prefix, suffix=suffix, pad=pad, **limits)


def _encode(tokenizer: Foreign, text: str) -> Sequence[int]:
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _around(name: str, tokenizer: Foreign) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and behind a text."""
    whole, bare = list(tokenizer(SAMPLE)["input_ids"]), list(_encode(tokenizer, SAMPLE))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    raise TextError(f"{name}: what its tokenizer puts around a text cannot be told")


def _positions(model: nn.Module) -> int:
    """How many tokens have a position. RoBERTa's begin behind the one that stands for padding."""
    config: Any = model.config
    known = getattr(config, "max_position_embeddings", None) or 0
    known = known if known > 0 else 1 << 30  # XLNet says -1, for no limit
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return int(known) - table.padding_idx - 1
    return int(known)
