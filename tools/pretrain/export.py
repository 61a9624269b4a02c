"""A finished run -> float16 weights and a model card that says what they are worth."""

import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors.torch import save_file
from torch import Tensor

import burst
from burst.errors import BurstError
from burst.files import make_folder, sha256_of, write_atomically
from tools.pretrain.evaluate import Scores, evaluate
from tools.pretrain.loop import CHECKPOINT, CONFIG, LOG

PRETRAINING = {"mae": "mae", "moco": "moco_v3", "supervised": "supervised"}
POOLING = {"mae": "avg", "moco": "token", "supervised": "token"}
TARGETS = {"mae": (200, 35), "moco": (100, 40), "supervised": (60, 50)}  # epochs, linear top-1
PREFIX = "backbone."
CARD = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True)
class Run:
    """What a run folder says: its recipe, the last line of its log, the backbone's weights."""

    config: dict[str, Any]
    last: dict[str, Any]
    state: dict[str, Tensor]


def read_run(folder: Path) -> Run:
    """Read a run folder of `tools.pretrain`.

    Raises:
        BurstError: it is none, or has not been saved yet.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        lines = (folder / LOG).read_text().splitlines()
        content = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BurstError(f"{folder} holds no run that has been saved: {error}") from error
    objective: dict[str, Tensor] = content["objective"]
    state = {
        name.removeprefix(PREFIX): value.to(torch.float16).contiguous()
        for name, value in objective.items()
        if name.startswith(PREFIX)
    }
    return Run(config, json.loads(lines[-1]), state)


def export(
    folder: Path, name: str, out: Path, *, images: Path, hardware: str, device: str = "cpu"
) -> tuple[Path, dict[str, Scores]]:
    """Write `NAME.safetensors` (float16, timm's names, no head) and its card `NAME.md`.

    Args:
        folder: the run.
        name: of a backbone of the registry, whose architecture the weights must fit.
        out: folder of both files.
        images: folder or zip with train/, val/ and test/, to evaluate on.
        hardware: what it was trained on, for the card.
        device: where the features are computed.

    Returns:
        The path of the weights, and the scores of the run and of random weights.
    """
    run = read_run(folder)
    make_folder(out)
    path = out / f"{name}.safetensors"
    facts = {"format": "pt", "name": name, "objective": run.config["objective"]}
    with write_atomically(path) as temporary:
        save_file(run.state, temporary, metadata=facts)
    objective = run.config["objective"]
    trained = burst.load_backbone(name, path, device=device)
    untrained = burst.load_backbone(name, "random", device=device)
    scores = {
        label: evaluate(backbone.model, images, pooling=POOLING[objective], device=device)
        for label, backbone in (("trained", trained), ("random", untrained))
    }
    card = _card(run, name, path, scores, _burstiness(trained), images, hardware)
    with write_atomically(path.with_suffix(".md")) as temporary:
        temporary.write_text(card)
    return path, scores


def _burstiness(backbone: burst.Backbone) -> list[dict[str, Any]]:
    """Excess kurtosis and shape of qk and qkx, a row a block, over the sample images."""
    options = burst.SurveyOptions(quantities=("qk", "qkx"))
    stream = burst.images_for(backbone, "sample", num_images=100)
    table = burst.survey(backbone, stream, options).table.set_index(["block", "quantity"])
    return [
        {
            "block": block,
            **{
                f"{quantity}_{short}": float(table.loc[(block, quantity), column])
                for quantity in ("qk", "qkx")
                for short, column in (("kurtosis", "excess_kurtosis"), ("shape", "ggd_shape"))
            },
        }
        for block in sorted({block for block, _ in table.index})
    ]


def _card(
    run: Run,
    name: str,
    path: Path,
    scores: dict[str, Scores],
    blocks: list[dict[str, Any]],
    images: Path,
    hardware: str,
) -> str:
    template = jinja2.Template(
        CARD.read_text(), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    objective = run.config["objective"]
    epochs, target = TARGETS[objective]
    return template.render(
        name=name,
        objective=objective,
        pretraining=PRETRAINING[objective],
        pooling=POOLING[objective],
        config=run.config,
        last=run.last,
        scores=scores,
        blocks=blocks,
        images=images.name,
        hardware=hardware,
        sha256=sha256_of(path),
        parameters=sum(value.numel() for value in run.state.values()),
        target_epochs=epochs,
        target=target,
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        torch=torch.__version__,
    )


def _commit() -> str:
    """The revision of this repository, or a word that says there is none."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "not in a repository"
