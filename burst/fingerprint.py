"""Which model is it? What a whitening and moments are checked by, whatever the model is called."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from burst.adapters import find_blocks, unwrap
from burst.backbone import Backbone
from burst.errors import BurstError, UnsupportedModel
from burst.projection import projection


@dataclass(frozen=True)
class Subject:
    """A model that is measured, and what a record says of it: one for each measurement."""

    model: nn.Module
    name: str
    pretraining: str = "unknown"
    weights_source: str | None = None
    weights_sha256: str | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def qk_sha256(self) -> str | None:
        """That of the weights when it is first asked for: reading them all takes time."""
        return qk_sha256(self.model)


def subject_of(model: nn.Module | Backbone, name: str | None = None) -> Subject:
    """Any model, called by its class if no name is given; or a backbone and what is known of it.

    Raises:
        BurstError: it is neither.
    """
    if isinstance(model, Backbone):
        return Subject(
            model.model,
            name or model.name,
            model.pretraining,
            model.weights_source,
            model.weights_sha256,
            model.notes,
        )
    if not isinstance(model, nn.Module):
        raise BurstError(f"the model is a {type(model).__name__}, expected an nn.Module")
    return Subject(model, name or type(unwrap(model)).__name__)


def check_tokens(model: nn.Module | Backbone, tokens: str) -> None:
    """Refuse to measure the patches of a text.

    Raises:
        UnsupportedModel: "patch" tokens of a backbone that reads no images.
    """
    if tokens == "patch" and isinstance(model, Backbone) and model.kind == "text":
        raise UnsupportedModel(
            f"{model.name} reads text, which has no patches; measure all of its tokens"
        )


def qk_sha256(model: nn.Module) -> str | None:
    """SHA-256 in hex of the float32 query and key weights of all blocks that can be measured.

    It does not depend on the model's name, the file its weights came from, their dtype if float32
    holds it, or the device. Models that agree in every W_q and W_k and differ elsewhere have one
    fingerprint, though they make other tokens: where norms, biases or adapters alone were trained.

    Returns:
        None if no block can be measured.

    Raises:
        UnsupportedModel: the model has no attention blocks at all.
    """
    blocks = find_blocks(model)
    digest = hashlib.sha256(f"{len(blocks)} blocks\n".encode())
    empty = digest.digest()
    for block in blocks:
        try:
            weights = projection(block.attention)
        except BurstError:
            continue
        digest.update(f"{block.index} {tuple(weights.w_q.shape)}\n".encode())
        for weight in (weights.w_q, weights.w_k):
            digest.update(weight.cpu().contiguous().numpy().data)
    return None if digest.digest() == empty else digest.hexdigest()


def identity(model: nn.Module | Backbone | Subject) -> dict[str, Any]:
    """What the record of a measurement says of the model."""
    subject = model if isinstance(model, Subject) else subject_of(model)
    return {
        "model": subject.name,
        "pretraining": subject.pretraining,
        "weights": subject.weights_source,
        "weights_sha256": subject.weights_sha256,
        "qk_sha256": subject.qk_sha256,
        "notes": list(subject.notes),
    }


def model_differences(made: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """How two models differ, each told by `model` (its name), `weights_sha256` and `qk_sha256`.

    Names and files count only where a fingerprint is missing, as in what was written before there
    were any: one model goes by several names, and random weights have no file.

    Returns:
        A phrase for each difference, "model a, not b" say.
    """
    keys = {"qk_sha256": "query and key weights"}
    if not (made.get("qk_sha256") and given.get("qk_sha256")):
        keys = {"model": "model", "weights_sha256": "weights sha256"}
    return [
        f"{what} {_short(made.get(key))}, not {_short(given.get(key))}"
        for key, what in keys.items()
        if made.get(key) != given.get(key)
    ]


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
