"""Models that only timm knows: `timm:NAME` and `hf-hub:ORG/NAME`."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from burst import _hub
from burst.checkpoint import LoadReport, load_checkpoint
from burst.errors import CheckpointError
from burst.files import sha256_of

TIMM = "timm:"
HUB = "hf-hub:"
RANDOM = "random"
Weights = str | os.PathLike[str] | None


@dataclass(frozen=True)
class ForeignModel:
    """A timm model without its head; `config` is how timm prepares its images."""

    model: nn.Module
    config: dict[str, Any]
    source: str
    sha256: str | None
    report: LoadReport | None


def current_name(name: str) -> str:
    """`timm:NAME` without names that timm has given up, and `hf_hub:` as `hf-hub:`."""
    if not name.startswith(TIMM):
        return name.replace("hf_hub:", HUB, 1) if name.startswith("hf_hub:") else name
    from timm.models import get_deprecated_models

    given = name.removeprefix(TIMM)
    return TIMM + (get_deprecated_models().get(given) or given)


def is_known(name: str) -> bool:
    """Whether timm has this architecture and, if one is given, this pretrained tag."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(name):
        return False
    try:
        get_pretrained_cfg(name)
    except RuntimeError:  # the architecture exists, the tag does not
        return False
    return True


def known_names() -> list[str]:
    """Every `timm:NAME`, with and without tags."""
    import timm

    return [TIMM + name for name in (*timm.list_models(), *timm.list_pretrained())]


def load_foreign(name: str, weights: Weights, seed: int) -> ForeignModel:
    """Build `timm:NAME` or `hf-hub:ORG/NAME` and load its weights.

    Raises:
        CheckpointError: timm has no weights for it, they cannot be downloaded, or do not fit.
    """
    from timm.data.config import resolve_data_config

    repository = name.removeprefix(HUB) if name.startswith(HUB) else None
    link = _hub.hub_page(repository) if repository else _link(name)
    if weights is None and link is None:
        raise CheckpointError(
            f"timm has no pretrained weights for {name}; give a file with --weights FILE, "
            f"or --weights random for an untrained model"
        )
    architecture = "timm:ARCHITECTURE" if repository else name
    advice = f"get {link} elsewhere and give it as --model {architecture} --weights FILE"
    with _hub.explained(name, advice), _online(repository or weights is None), seeded(seed):
        model, origin = _create(name.removeprefix(TIMM), pretrained=weights is None)
    config = resolve_data_config(pretrained_cfg=origin)  # type: ignore[no-untyped-call]
    if weights == RANDOM:
        return ForeignModel(model, config, RANDOM, None, None)
    if weights is not None:
        report = load_checkpoint(model, weights)
        return ForeignModel(model, config, str(weights), report.sha256, report)
    file = _loaded_file(origin)
    return ForeignModel(model, config, str(link), sha256_of(file) if file else None, None)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeded initialisation that leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU too
        yield


def _online(needed: object) -> contextlib.AbstractContextManager[None]:
    return _hub.quick_failure() if needed else contextlib.nullcontext()


def _create(name: str, *, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    import timm

    try:
        model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
        return model, dict(model.pretrained_cfg)
    except _hub.FAILURES:
        raise
    except Exception as error:  # timm and the model's own code raise anything, KeyError included
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"timm cannot load {name} ({type(error).__name__}: {reason}); is it a timm model?"
        ) from error


def _link(name: str) -> str | None:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name.removeprefix(TIMM))
    if config is None or not config.has_weights:
        return None
    if config.hf_hub_id:
        return _hub.hub_link(config.hf_hub_id, config.hf_hub_filename or _hub.WEIGHT_FILES[0])
    return str(config.url)


def _loaded_file(config: dict[str, Any]) -> Path | None:
    """The file that timm has just read, found again in its cache."""
    if config.get("hf_hub_id"):
        named = config.get("hf_hub_filename")
        files = (
            _hub.cached_hub_file(config["hf_hub_id"], name)
            for name in ((named,) if named else _hub.WEIGHT_FILES)
        )
        return next((file for file in files if file), None)
    file = _hub.torch_cache() / str(config.get("url")).rpartition("/")[2]
    return file if file.is_file() else None
