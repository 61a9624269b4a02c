"""`python -m tools.pretrain OBJECTIVE --data ... --out RUN`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from burst.device import choose_device
from burst.errors import BurstError
from cli._common import reported_errors
from tools.pretrain.loop import Recipe, train
from tools.pretrain.pixels import load_pixels

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Data = Annotated[list[Path], typer.Option(help="ImageFolder, or a zip of one; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Folder of the run.")]
Epochs = Annotated[float | None, typer.Option(help="Length of the training.")]
Minutes = Annotated[float | None, typer.Option(help="Length by the clock instead.")]
BatchSize = Annotated[int, typer.Option(help="Images a step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate, for a batch of 256.")]
Decay = Annotated[float, typer.Option(help="Weight decay of matrices.")]
Sizes = Annotated[str, typer.Option(help="Pixels of the views, in equal shares: 32,48,64.")]
Seed = Annotated[int, typer.Option(help="Of weights, order and views.")]
Precision = Annotated[str, typer.Option(help="bfloat16 or float32.")]
Compile = Annotated[bool, typer.Option("--compile", help="Use torch.compile.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto.")]
Cache = Annotated[Path | None, typer.Option(help="Keep the decoded images here.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")]


def _run(objective: str, **given: Any) -> None:
    with reported_errors():
        device = choose_device(given.pop("device"))
        out, data, cache = given.pop("out"), given.pop("data"), given.pop("cache")
        resume = given.pop("resume")
        sizes = _parse_sizes(given.pop("sizes"))
        recipe = Recipe(objective=objective, sizes=sizes, **given)
        pixels = load_pixels(data, size=max(sizes), cache=cache or out / "cache")
        train(recipe, pixels, out, device=device, resume=resume)


def _parse_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise BurstError(f"--sizes {text!r} is not a list of numbers such as 32,48,64") from None


@app.command()
def mae(
    data: Data,
    out: Out,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch_size: BatchSize = 256,
    lr: Rate = 1e-3,
    weight_decay: Decay = 0.05,
    sizes: Sizes = "64",
    seed: Seed = 0,
    precision: Precision = "bfloat16",
    compile: Compile = False,
    device: Device = "auto",
    cache: Cache = None,
    resume: Resume = False,
) -> None:
    """Masked autoencoding: 75 % of the patches hidden, normalised pixels predicted."""
    _run("mae", **locals())


@app.command()
def moco(
    data: Data,
    out: Out,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch_size: BatchSize = 256,
    lr: Rate = 1e-3,
    weight_decay: Decay = 0.1,
    sizes: Sizes = "64",
    seed: Seed = 0,
    precision: Precision = "bfloat16",
    compile: Compile = False,
    device: Device = "auto",
    cache: Cache = None,
    resume: Resume = False,
) -> None:
    """MoCo v3: two views, momentum encoder, predictor, InfoNCE."""
    _run("moco", **locals())


@app.command()
def supervised(
    data: Data,
    out: Out,
    epochs: Epochs = None,
    minutes: Minutes = None,
    batch_size: BatchSize = 256,
    lr: Rate = 1e-3,
    weight_decay: Decay = 0.05,
    sizes: Sizes = "64",
    mixup: Annotated[bool, typer.Option("--mixup")] = False,
    seed: Seed = 0,
    precision: Precision = "bfloat16",
    compile: Compile = False,
    device: Device = "auto",
    cache: Cache = None,
    resume: Resume = False,
) -> None:
    """Cross-entropy with crops, flips, colour jitter and, if asked for, mix-up."""
    _run("supervised", **locals())


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    name: Annotated[str, typer.Option(help="Its name in the registry, such as mae_tiny.")],
    images: Annotated[Path, typer.Option(help="Folder or zip with train/, val/ and test/.")],
    out: Annotated[Path, typer.Option(help="Where weights and card go.")],
    hardware: Annotated[str, typer.Option(help="What it was trained on, for the card.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Evaluate a run, and write its weights (float16) and model card."""
    from tools.pretrain.export import export as write

    with reported_errors():
        path, scores = write(run, name, out, images=images, hardware=hardware, device=device)
        for label, found in scores.items():
            typer.echo(f"{label}: k-NN {found.knn:.1f} %, linear probe {found.linear:.1f} %")
        typer.echo(f"{path}; its SHA-256 for backbones.toml is in {path.with_suffix('.md')}")


if __name__ == "__main__":
    app()
