"""A trained run -> one file: plain prompt tokens and a head; or a program of `torch.export`."""

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bpt.adaptation import AdapterViT, BitFitViT, PeftViT
from bpt.construction import Model
from bpt.fine_tuning import FineTunedViT
from bpt.gates import Gates
from bpt.model import PromptedViT, plain_vit
from bpt.prompt import PlainPrompt
from bpt.run_folder import Run, RunFolder
from burst.backbone import Backbone, load_backbone
from burst.errors import CheckpointError, OutputError
from burst.files import write_atomically
from burst.loading.common import CODE, RANDOM
from burst.provenance import provenance

KIND = "bpt model 1"
SUFFIX, PROGRAM_SUFFIX = ".safetensors", ".pt2"
CROP = ("interpolation", "crop_fraction", "crop_mode")


def export_run(run: Run, out: str | Path, *, program: str | Path | None = None) -> None:
    """Write the best epoch's model for use elsewhere.

    The file holds `prompts.BLOCK.values` (m, d), the product of whatever the prompt was made of,
    `gates.logits` and `gates.temperatures` of gatevpt, and `head.weight` and `head.bias`. Of a
    fine-tuned model it holds all weights, LoRA added to them, and of adapters and biases what was
    trained. A JSON string in its header says which backbone belongs to it, its SHA-256, how images
    are prepared, the classes.

    Args:
        run: from `open_run`.
        out: a .safetensors file.
        program: a .pt2 file for the whole model, backbone included, as `torch.export` traces it:
            (B, 3, H, W) normalised float32 images -> (B, classes) logits, for any B.

    Raises:
        OutputError: another suffix, or a place that cannot be written.
        CheckpointError: see `Run.load_model`.
        UnsupportedModel: see `PeftViT.merged`.
    """
    check_suffix(out, SUFFIX)
    if program is not None:
        check_suffix(program, PROGRAM_SUFFIX)
    model, backbone = run.load_model()
    if isinstance(model, PromptedViT):
        model = model.folded().eval()
    elif isinstance(model, PeftViT):
        model = model.merged().eval()
    write_exported(out, model.trained_state(), _metadata(run, model, backbone))
    if program is not None:
        _export_program(model, backbone, Path(program))


def write_exported(
    out: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write tensors, and as JSON what they are.

    Raises:
        OutputError: it cannot be written.
    """
    metadata = {"metadata": json.dumps(about, allow_nan=False)}
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with write_atomically(out) as temporary:
        temporary.write_bytes(save(plain, metadata))


def check_suffix(path: str | Path, suffix: str) -> None:
    """Refuse a name that would hide what a file is.

    Raises:
        OutputError: it ends otherwise.
    """
    if Path(path).suffix != suffix:
        raise OutputError(f"cannot write {path}: its name must end in {suffix}")


def load_exported(
    path: str | Path, weights: str | Path | None = None, *, device: str | torch.device = "cpu"
) -> tuple[Model, tuple[str, ...]]:
    """The model of a file that `export_run` wrote, in eval mode, and its classes.

    A file may name a function of one's own as its backbone (`python:MODULE:NAME`), which is then
    imported and called: load those of people whom you trust. `load_prompt` of a hub calls none.

    Args:
        path: the file.
        weights: of the backbone, if they do not come with the package and lie elsewhere now.
        device: where the model goes.

    Raises:
        CheckpointError: missing, damaged, of another kind; or the backbone's weights are others, or
            not here.
        BurstError: else see `burst.load_backbone`.
    """
    model, _, about = open_exported(path, weights, device=device)
    return model, tuple(about["classes"])


def open_exported(
    path: str | Path,
    weights: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    trusted: bool = True,
) -> tuple[Model, Backbone, dict[str, Any]]:
    """As `load_exported`: the model, its backbone, and all that the file says of itself.

    Raises:
        CheckpointError: see `load_exported`; or the file is not trusted, and names code.
    """
    tensors, about = read_exported(Path(path), KIND)
    try:
        if not trusted and str(about["backbone"]["name"]).startswith(CODE):
            raise CheckpointError(
                f"{path} names {about['backbone']['name']} as its backbone; code that somebody "
                "else names is not run"
            )
        # Files of earlier versions are of runs at the size of the pretraining.
        size = about["backbone"].get("image_size")
        backbone = exported_backbone(about, path, weights, device, image_size=size)
        crop = {name: about[name] for name in CROP if name in about}
        backbone = dataclasses.replace(backbone, **crop)
        classes, pooling = tuple(about["classes"]), about["pooling"]
        blocks, after, method = about["blocks"], about["after"], about["method"]
        bottleneck = about.get("bottleneck") or 1
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata lacks {error}") from error
    one = torch.Generator()  # else heads draw from the global one
    if method in ("full", "lora"):
        model: Model = FineTunedViT(backbone, len(classes), pooling=pooling, generator=one)
    elif method == "bitfit":
        model = BitFitViT(backbone, len(classes), pooling=pooling, generator=one)
    elif method == "adapter":
        model = AdapterViT(
            backbone, len(classes), bottleneck=bottleneck, pooling=pooling, generator=one
        )
    else:
        prompts = {}
        for block in blocks:
            if (name := f"prompts.{block}.values") not in tensors:
                raise CheckpointError(f"{path} is damaged: {name} is missing")
            prompts[block] = PlainPrompt(tensors[name].clone())
        gates = Gates(len(plain_vit(backbone).blocks)) if method == "gatevpt" else None
        model = PromptedViT(
            backbone,
            prompts,
            len(classes),
            pooling=pooling,
            after=after,
            gates=gates,
            generator=one,
        )
    model.load_trained_state(tensors)
    return model.to(next(backbone.model.parameters()).device).eval(), backbone, about


def _metadata(run: Run, model: Model, backbone: Backbone) -> dict[str, Any]:
    prompted = model if isinstance(model, PromptedViT) else None
    about = about_run(run, backbone)
    about["backbone"]["image_size"] = run.recipe.image_size
    return {
        "kind": KIND,
        **about,
        "blocks": list(prompted.blocks) if prompted else [],
        "pooling": model.pooling,
        "after": prompted.after if prompted else "carry",
        "bottleneck": run.recipe.bottleneck if run.recipe.method == "adapter" else None,
        "image_size": list(backbone.image_size),
        "interpolation": backbone.interpolation,
        "crop_fraction": backbone.crop_fraction,
        "crop_mode": backbone.crop_mode,
    }


def about_run(run: RunFolder, backbone: Backbone) -> dict[str, Any]:
    """What any exported file says of where it comes from, and of the backbone that it needs."""
    return {
        "classes": list(run.classes),
        "method": run.recipe.method,
        "placement": run.recipe.placement if run.recipe.prompted else None,
        "backbone": {
            "name": run.recipe.model,
            "weights": run.recipe.weights,
            "weights_sha256": backbone.weights_sha256,
            "seed": run.recipe.seed,
        },
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "result": run.result,
        **provenance(),
    }


def exported_backbone(
    about: Mapping[str, Any],
    path: str | Path,
    weights: str | Path | None,
    device: str | torch.device,
    *,
    image_size: int | None = None,
) -> Backbone:
    """The backbone that an exported file needs, reading images of this size if one is given.

    Raises:
        CheckpointError: its weights are others.
        KeyError, TypeError: the metadata is damaged.
    """
    kept = about["backbone"]
    needed = None if kept["weights"] == RANDOM else weights or kept["weights"]
    if needed is not None and not Path(needed).is_file():
        raise CheckpointError(
            f"{path} belongs to weights of {kept['name']} that are not here: {needed}, SHA-256 "
            f"{kept['weights_sha256']}; put the file there, or name it (--weights FILE)"
        )
    backbone = load_backbone(
        kept["name"],
        weights or kept["weights"],
        device=device,
        seed=kept["seed"],
        image_size=image_size,
    )
    if backbone.weights_sha256 != kept["weights_sha256"]:
        raise CheckpointError(
            f"{path} belongs to other weights of {kept['name']}: SHA-256 "
            f"{kept['weights_sha256']}, not {backbone.weights_sha256}"
        )
    return dataclasses.replace(backbone, mean=tuple(about["mean"]), std=tuple(about["std"]))


def _export_program(model: Model, backbone: Backbone, out: Path) -> None:
    example = torch.zeros(2, 3, *backbone.image_size)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    # To a file, a full disk ends the process.
    torch.export.save(program, buffer := io.BytesIO())
    with write_atomically(out) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_exported(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of an exported file.

    Raises:
        CheckpointError: missing, damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["metadata"])
            if about["kind"] == kind:
                return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        pass
    raise CheckpointError(f"{path} is not an exported model; make one with `bpt export`")
