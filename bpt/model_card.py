"""The card of a prompt that is shared: what it is, how good, from which data and backbone."""

import shlex
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from bpt.dataset import dataset_info
from bpt.engine import standard_error
from bpt.methods import METHODS
from burst.backbone_spec import BackboneSpec, known_backbones
from burst.errors import UnknownName
from burst.provenance import DISTRIBUTION

MOST_CLASSES = 100  # that a card names
OWN = "folder"
WHAT = {
    "linear": "A linear head on a frozen Vision Transformer",
    "full": "A fine-tuned Vision Transformer",
    "lora": "A Vision Transformer fine-tuned by LoRA, merged",
    "bitfit": "The fine-tuned biases of a Vision Transformer, and a head",
    "adapter": "Adapters in a frozen Vision Transformer, and a head",
}

# Of the recipe, what a reader looks for.
TOLD = (
    *("method", "placement", "num_prompts", "rank", "bottleneck", "whitening", "pooling"),
    *(
        "image_size",
        "normalisation",
        "augmentation",
        "randaugment",
        "random_erasing",
        "epochs",
        "batch_size",
    ),
    *("optimizer", "lr", "weight_decay", "head_weight_decay", "ema_decay", "protocol"),
    *("train_fraction", "fold", "precision", "seed"),
)
OF_ONE_METHOD = {"rank": ("bpt-bilinear",), "bottleneck": ("lora", "adapter")}


def model_card(config: Mapping[str, Any], result: Mapping[str, Any], repository: str) -> str:
    """README.md of a repository, with metadata that the hub shows.

    Args:
        config: config.json of the run.
        result: result.json of the run.
        repository: ORG/NAME.
    """
    name = repository.rpartition("/")[2]
    parts = [
        f"---\n{_metadata(config, result, name).to_yaml()}\n---",
        f"# {name}",
        _summary(config),
        _use(config, repository, name),
        _results(config, result),
        _data(config),
        _backbone(config),
        _training(config),
    ]
    return "\n\n".join(parts) + "\n"


def backbone_spec(name: str) -> BackboneSpec | None:
    """The registry's entry of a backbone, by its name or timm's."""
    wanted = name.removeprefix("timm:")
    return next((one for one in known_backbones() if wanted in (one.name, one.timm_tag)), None)


def licence_of(config: Mapping[str, Any]) -> str:
    """Of the backbone's weights; "unknown" where the registry does not have them."""
    spec = backbone_spec(config["backbone"]["name"])
    own_weights = config["recipe"].get("weights") is not None
    return "unknown" if spec is None or own_weights else spec.licence


def _metadata(config: Mapping[str, Any], result: Mapping[str, Any], name: str) -> ModelCardData:
    title, kind = _title(config), config["dataset"]["name"]
    accuracy, images = result["test_accuracy"], result["test_images"]
    error = standard_error(accuracy, images) / 100
    score = EvalResult(
        task_type="image-classification",
        dataset_type=kind,
        dataset_name=title,
        dataset_split="test",
        metric_type="accuracy",
        metric_value=round(accuracy / 100, 6),
        metric_name=f"top-1 accuracy (standard error {error:.4f}; protocol {result['protocol']})",
    )
    return ModelCardData(
        license=licence_of(config).lower(),
        library_name=DISTRIBUTION,
        pipeline_tag="image-classification",
        tags=["visual-prompt-tuning", "vision-transformer", config["recipe"]["method"]],
        model_name=name,
        eval_results=[score],
        base_model=_base_model(config["backbone"]["name"]),
    )


def _base_model(name: str) -> str | None:
    """The backbone's own repository on the hub, where it has one."""
    if name.startswith("hf-hub:"):
        return name.partition(":")[2].partition("@")[0]
    spec = backbone_spec(name)
    return f"timm/{spec.timm_tag}" if spec and spec.timm_tag else None


def _title(config: Mapping[str, Any]) -> str:
    kind = config["dataset"]["name"]
    try:
        return "the author's own images" if kind == OWN else dataset_info(kind).title
    except UnknownName:
        return str(kind)


def _summary(config: Mapping[str, Any]) -> str:
    recipe, parameters = config["recipe"], config["parameters"]
    what = WHAT.get(recipe["method"], "Prompts for a frozen Vision Transformer, and a head")
    return (
        f"{what}: `{config['backbone']['name']}`, tuned by `{recipe['method']}` to tell "
        f"{len(config['dataset']['classes'])} classes of {_title(config)}. "
        f"{parameters['trained']:,} of {parameters['total']:,} parameters were trained; "
        "the backbone is not in this repository."
        if recipe["method"] not in ("full", "lora")
        else f"{what}: `{config['backbone']['name']}`, to tell "
        f"{len(config['dataset']['classes'])} classes of {_title(config)}. All weights are here."
    )


def _use(config: Mapping[str, Any], repository: str, name: str) -> str:
    weights = config["recipe"].get("weights")
    given = f', weights="{weights}"' if weights not in (None, "random") else ""
    count = len(config["dataset"]["classes"])
    return f"""## Use

`pip install {DISTRIBUTION}`, then

```python
import bpt

model = bpt.load_prompt("{repository}"{given})
logits = model(model.preprocess([image]))  # image: of PIL; logits: (1, {count})
print(model.classes[logits.argmax()])
```

or `bpt pull {repository}` and `bpt predict {name} PHOTO`. The backbone's weights are found as
`bpt` always finds them, and their SHA-256 is checked."""


def _results(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    accuracy, images = result["test_accuracy"], result["test_images"]
    error = standard_error(accuracy, images)
    rows = [f"| test | {images:,} | {accuracy:.2f} % | {error:.2f} % |"]
    if (val := result.get("val_accuracy")) is not None:
        count = config["dataset"]["val"]
        rows.insert(0, f"| val | {count:,} | {val:.2f} % | {standard_error(val, count):.2f} % |")
    lines = [
        "## Results\n",
        "| split | images | top-1 accuracy | standard error |",
        "|---|---|---|---|",
        *rows,
        f"\nProtocol `{result['protocol']}`: {result['label']}; it is epoch "
        f"{result['best_epoch']} of {result['epochs']}. One training, seed {result['seed']}. The "
        "standard error is that of a share p of n images, √(p (1 − p) / n); what another seed "
        "would change is not in it.",
    ]
    return "\n".join(lines)


def _data(config: Mapping[str, Any]) -> str:
    data = config["dataset"]
    counts = ", ".join(f"{data[split]:,} to {use}" for split, use in USES.items() if data[split])
    named = [f"`{one.replace('`', '')}`" for one in data["classes"][:MOST_CLASSES]]
    more = len(data["classes"]) - len(named)
    rest = f" and {more:,} more, in `config.json`" if more else ""
    lines = [
        f"## Data\n\n{_title(config)[0].upper()}{_title(config)[1:]} (`{data['name']}`): {counts}.",
        f"{len(data['classes'])} classes: {', '.join(named)}{rest}.",
    ]
    if data["name"] != OWN:
        try:
            info = dataset_info(data["name"])
        except UnknownName:
            return "\n\n".join(lines)
        lines.append(f"Licence of the images: {info.licence}. Source: {info.source}.")
    return "\n\n".join(lines)


USES = {"train": "train on", "val": "choose the epoch on", "test": "test on"}


def _backbone(config: Mapping[str, Any]) -> str:
    kept = config["backbone"]
    height, width = kept["image_size"]
    spec = backbone_spec(kept["name"])
    mean, std = ([round(one, 4) for one in kept[name]] for name in ("mean", "std"))
    lines = [
        "## Backbone\n",
        f"- name: `{kept['name']}`, pretraining: {kept['pretraining']}",
        f"- weights: {kept['weights_source']}, SHA-256 `{kept['weights_sha256']}`",
        f"- licence of the weights: {licence_of(config)}",
        f"- images: {height} x {width} pixels, {kept['interpolation']}, "
        f"{kept['crop_fraction']:g} of the resized image ({kept['crop_mode']}), "
        f"mean {mean}, deviation {std}",
    ]
    if spec and spec.link and config["recipe"].get("weights") is None:
        lines[2] += f" ({spec.link})"
    return "\n".join(lines)


def _training(config: Mapping[str, Any]) -> str:
    recipe, versions = config["recipe"], config["versions"]
    lines = ["## Training", ""]
    command = shlex.join(config["command"])
    if command.startswith(("bpt ", "python -m bpt ")):
        lines += [f"```\n{command}\n```", ""]
        lines += ["Absolute paths are cut to their last part. What it came to:", ""]
    else:
        lines += ["Trained from Python. What it came to:", ""]
    used = [name for name in TOLD if recipe["method"] in OF_ONE_METHOD.get(name, METHODS)]
    said = {name: recipe.get(name) for name in used if recipe.get(name) is not None}
    lines += ["| option | value |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(value)} |" for name, value in said.items()]
    lines += ["", "The whole recipe is in `config.json`."]
    using = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines += ["", f"{config['created']}, {config['machine']}, with {using}."]
    return "\n".join(lines)


def _cell(value: Any) -> str:  # noqa: ANN401  JSON
    return str(value).replace("|", "\\|")
