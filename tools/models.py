"""Which models can be measured? Builds every architecture that is installed, and writes the page.

    python -m tools.models > docs/models.md

Models are built without values (on the meta device), so nothing is downloaded and no memory needed;
it takes some ten minutes. The text around the tables is `models.md.jinja` beside this file.
"""

import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # some ask the hub for a part of theirs

import jinja2
import torch
from torch import nn

from burst import UnsupportedModel, describe_blocks

Built = Iterator[tuple[str, str, Callable[[], nn.Module]]]  # family, name, how to build it


def timm_models() -> Built:
    import timm

    for name in timm.list_models():
        family = timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.")
        yield family, name, lambda name=name: timm.create_model(name)


def transformers_models() -> Built:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    for config in MODEL_MAPPING.keys():  # noqa: SIM118 (not every key has its model)
        try:
            found = MODEL_MAPPING[config]
        except ValueError:  # its name is listed, and it is not there
            continue
        for kind in found if isinstance(found, tuple) else (found,):
            yield config.model_type, kind.__name__, lambda kind=kind, config=config: kind(config())


def torchvision_models() -> Built:
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        yield name, name, lambda name=name: torchvision.models.get_model(name, weights=None)


def open_clip_models() -> Built:
    import open_clip

    for name in open_clip.list_models():
        yield (
            name,
            name,
            lambda name=name: open_clip.create_model(name, load_weights=False, device="meta"),
        )


LIBRARIES = {
    "timm": timm_models,
    "transformers": transformers_models,
    "torchvision": torchvision_models,
    "open_clip_torch": open_clip_models,
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # it looks at values while it is made
        return build()


def outcome(build: Callable[[], nn.Module]) -> tuple[str, ...]:
    """What becomes of an architecture: a heading, and what there is to say below it."""
    try:
        model = built(build)
    except Exception as error:  # what an architecture asks for beyond its configuration
        return "not built", type(error).__name__
    try:
        blocks = describe_blocks(model)
    except UnsupportedModel as error:
        unknown = "nothing is known" in str(error)
        return ("refused", NONE_KNOWN) if unknown else ("no attention",)
    reasons = Counter(block.reason for block in blocks if not block.supported)
    terms = dict.fromkeys(term for block in blocks for term in block.omitted)
    if not reasons:
        return ("measured", *terms) if terms else ("measured",)
    first = reasons.most_common(1)[0][0]
    if len(blocks) == reasons.total():
        return "refused", _short(first)
    return "some blocks measured", _short(first)


def _short(reason: str) -> str:
    if "is not known" in reason:
        return "an attention class that is not known"
    return reason.partition(", so ")[0].partition("; ")[0]


def tried(models: Built, progress: Callable[[str], None]) -> dict[tuple[str, ...], Counter[str]]:
    """Outcome -> family -> how many of its architectures."""
    found: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for family, name, build in models:
        found[outcome(build)][family] += 1
        progress(name)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    libraries = {}
    for library, models in LIBRARIES.items():
        with redirect_stdout(sys.stderr):  # some libraries print
            found = tried(models(), print)
        order = sorted(found, key=lambda key: (ORDER.index(key[0]), key))
        libraries[f"{library} {version(library)}"] = {key: found[key] for key in order}
    page = jinja2.Environment(trim_blocks=True)
    page.filters |= {"total": Counter.total, "listed": listed}
    template = Path(__file__).with_suffix(".md.jinja").read_text(encoding="utf-8")
    print(page.from_string(template).render(libraries=libraries))


def listed(families: Counter[str], most: int) -> str:
    """The families with their numbers, in brackets, and how many more there are."""
    shown = [f"{name} ({count})" if count > 1 else name for name, count in families.items()]
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(shown[:most]) + more


NONE_KNOWN = "none of its attention classes is known"
ORDER = (
    "measured",
    "some blocks measured",
    "refused",
    "no attention",
    "not built",
)

if __name__ == "__main__":
    main()
