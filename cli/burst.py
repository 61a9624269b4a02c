"""The command `burst`: parse, call the library, print.

The libraries are imported inside the commands: PyTorch takes seconds, and `--help` must not.
"""

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cli._common import (
    Device,
    Json,
    Quiet,
    Steps,
    add_version,
    parse_blocks,
    parse_shrinkage,
    parse_steps,
    plain_console,
    reported_errors,
    run,
)

if TYPE_CHECKING:
    from burst import Backbone, ImageStream, TextStream

QUANTITIES = ["qk", "x", "qkx"]  # and logits, where asked for
SAMPLE = "sample"

app = typer.Typer(
    name="burst",
    help="See how the attention weights of a transformer are distributed.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_version(app)

Model = Annotated[
    str,
    typer.Option(
        help="A name from `burst models`, or timm:NAME, hf:ORG/NAME, hf:FOLDER, torchvision:NAME, "
        "open_clip:NAME/PRETRAINED, python:package.module:factory."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="A checkpoint file, or `random`; nothing is downloaded then."),
]
Images = Annotated[
    str,
    typer.Option(help="A folder, a zip or plain tar of images, an image, or `sample` (embedded)."),
]
NumImages = Annotated[
    int,
    typer.Option(help="How many images, or sequences of a text, drawn at random by the seed."),
]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Pixels a side, where not the pretraining's; positions are resampled."),
]
Text = Annotated[
    Path | None,
    typer.Option(help="A text file, for a language model or the text tower of one for both."),
]
Blocks = Annotated[str, typer.Option(help="`all`, or blocks counted from 0, such as 0,3-5.")]
Convention = Annotated[
    str, typer.Option(help="`paper`: W_q W_k^T; `authors`: what their code computes.")
]
Tokens = Annotated[str, typer.Option(help="`all`, or `patch` to leave the class token etc. out.")]
Seed = Annotated[
    int, typer.Option(help="Of the choice of images or sequences, and of the sample's crops.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that can't be read.")]


@app.command()
def models(
    library: Annotated[
        str | None,
        typer.Option(help="List what is known of hf, open_clip, timm or torchvision instead."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the known backbones: name, pretraining, size, source, on disk or not."""
    with reported_errors():
        import burst
        import reports

        if library is not None:
            found = burst.library_models(library)
            if as_json:
                typer.echo(json.dumps(found, indent=2))
            else:
                plain_console().print(reports.library_table(found))
            return
        specs = burst.known_backbones()
        if as_json:
            typer.echo(json.dumps([reports.model_record(spec) for spec in specs], indent=2))
        else:
            plain_console().print(reports.models_table(specs))


@app.command()
def histogram(
    model: Model = "mae_tiny",
    weights: Weights = None,
    images: Images = SAMPLE,
    text: Text = None,
    image_size: ImageSize = None,
    num_images: NumImages = 100,
    blocks: Blocks = "all",
    quantity: Annotated[
        list[str],
        typer.Option(
            help="qk: W_q W_k^T; x: X; qkx: W_q W_k^T X^T; logits: what softmax is given. "
            "Repeatable."
        ),
    ] = QUANTITIES,
    bins: Annotated[int, typer.Option(help="Bins of the stored histograms; even.")] = 256,
    per_head: Annotated[bool, typer.Option("--per-head", help="Measure each head too.")] = False,
    convention: Convention = "paper",
    tokens: Tokens = "all",
    precision: Annotated[
        str,
        typer.Option(
            help="Of W_q W_k^T X^T on a GPU: ieee, tf32x3 (about as good), tf32 or bf16; "
            "on a CPU it is always ieee."
        ),
    ] = "tf32x3",
    forward_precision: Annotated[
        str, typer.Option(help="Of the model itself: float32, or bfloat16 or float16 (autocast).")
    ] = "float32",
    device: Device = "auto",
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for table, histograms, the whole survey, record and figures."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how bursty a backbone's attention is, block by block."""
    log = plain_console(stderr=True)
    with reported_errors():
        import burst
        import reports

        options = burst.SurveyOptions(
            blocks=parse_blocks(blocks),
            quantities=tuple(dict.fromkeys(quantity)),
            per_head=per_head,
            convention=convention,
            tokens=tokens,
            bins=bins,
            precision=precision,
            forward_precision=forward_precision,
        )
        with burst.process_group() as (rank, _):
            if out and rank == 0:
                burst.make_folder(out)
            backbone = _backbone(model, weights, text, device=device, image_size=image_size)
            weights_alone = not (options.need_images or text or images != SAMPLE)
            stream = (
                ()
                if weights_alone
                else _inputs(backbone, images, text, count=num_images, seed=seed, skip_bad=skip_bad)
            )
            with Steps(log, "batches", quiet=quiet or rank > 0) as progress:
                survey = burst.survey(backbone, stream, options, progress=progress)
        if rank > 0:
            return
        files = reports.save_survey(survey, out, seed=seed) if out else []
        if as_json:
            typer.echo(survey.table.to_json(orient="records", indent=2))
        elif not quiet:
            console = plain_console()
            console.print(reports.survey_table(survey))
            for line in reports.survey_notes(survey, num_images=num_images, files=files):
                console.print(line, highlight=False, soft_wrap=True)


@app.command()
def whiten(
    out: Annotated[Path, typer.Option(help="File for the matrices: .pt or .safetensors.")],
    model: Model = "mae_tiny",
    weights: Weights = None,
    images: Images = SAMPLE,
    text: Text = None,
    image_size: ImageSize = None,
    num_images: NumImages = 100,
    blocks: Blocks = "all",
    method: Annotated[
        str,
        typer.Option(
            help="zca, pca, cholesky, zca-cor or pca-cor (Kessy et al. 2018); or diagonal: each "
            "row divided by its deviation, no more."
        ),
    ] = "zca",
    shrinkage: Annotated[
        str, typer.Option(help="Of the tokens' covariance: none, oas, or a number from 0 to 1.")
    ] = "none",
    floor: Annotated[
        float,
        typer.Option(
            help="Eigenvalues (diagonal: variances) below this share of the largest are raised "
            "to it."
        ),
    ] = 1e-6,
    through_norm: Annotated[
        bool,
        typer.Option(
            "--through-norm", help="Whiten what a prompt meets behind the block's first norm."
        ),
    ] = False,
    recipe: Annotated[
        str, typer.Option(help="`corrected`, or `authors`: what their code estimates.")
    ] = "corrected",
    convention: Convention = "paper",
    tokens: Tokens = "all",
    device: Device = "auto",
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make the matrices that whiten W_q W_k^T X^T, block by block, with a figure beside them."""
    log = plain_console(stderr=True)
    with reported_errors():
        import burst
        import reports

        options = burst.WhiteningOptions(
            blocks=parse_blocks(blocks),
            method=method,
            shrinkage=parse_shrinkage(shrinkage),
            floor=floor,
            through_norm=through_norm,
            recipe=recipe,
            convention=convention,
            tokens=tokens,
        )
        burst.check_whitening_path(out)
        with burst.process_group() as (rank, _):
            if rank == 0:
                burst.make_folder(out.parent)
            backbone = _backbone(model, weights, text, device=device, image_size=image_size)
            stream = _inputs(backbone, images, text, count=num_images, seed=seed, skip_bad=skip_bad)
            with Steps(log, "batches", quiet=quiet or rank > 0) as progress:
                whitening = burst.whiten(backbone, stream, options, progress=progress)
            pairs = burst.whitened_histograms(backbone, stream, whitening, options)
        if rank > 0:
            return
        files = reports.save_whitening_run(whitening, pairs, out, seed=seed)
        if as_json:
            record = [reports.plain(row) for row in reports.whitening_record(whitening, pairs)]
            typer.echo(json.dumps(record, indent=2))
        elif not quiet:
            console = plain_console()
            console.print(reports.whitening_table(whitening, pairs))
            names = ", ".join(file.name for file in files)
            console.print(f"written to {out.parent}: {names}", highlight=False, soft_wrap=True)


@app.command()
def spectrum(
    model: Model = "mae_tiny",
    weights: Weights = None,
    blocks: Blocks = "all",
    per_head: Annotated[bool, typer.Option("--per-head", help="Measure each head too.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for table, singular values, record and figure.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the singular values of W_q W_k^T, block by block, from the weights alone."""
    log = plain_console(stderr=True)
    with reported_errors():
        import burst
        import reports

        chosen = parse_blocks(blocks)
        if out:
            burst.make_folder(out)
        backbone = burst.load_backbone(model, weights)
        with Steps(log, "blocks", quiet=quiet) as progress:
            found = burst.spectrum(backbone, chosen, per_head, progress=progress)
        files = reports.save_spectrum(found, out) if out else []
        if as_json:
            typer.echo(found.table.to_json(orient="records", indent=2))
        elif not quiet:
            console = plain_console()
            console.print(reports.spectrum_table(found))
            for line in reports.spectrum_notes(found, files=files):
                console.print(line, highlight=False, soft_wrap=True)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="Folder for the page, its figures and its tables.")],
    model: Annotated[
        list[str], typer.Option(help="As for `burst histogram`. Repeatable: they are compared.")
    ] = ["mae_tiny"],  # noqa: B006  typer copies it
    weights: Annotated[
        list[str] | None,
        typer.Option(help="A checkpoint for each --model, in their order, or for none."),
    ] = None,
    images: Images = SAMPLE,
    text: Text = None,
    image_size: ImageSize = None,
    num_images: NumImages = 100,
    heads: Annotated[bool, typer.Option(help="Measure each head too.")] = True,
    whitening: Annotated[bool, typer.Option(help="Whiten, and show before and after.")] = True,
    nulls: Annotated[
        bool, typer.Option(help="Measure random weights, permuted tokens and extremes beside.")
    ] = True,
    style: Annotated[
        str, typer.Option(help="Of the figures: paper, or slide with larger text and lines.")
    ] = "paper",
    device: Device = "auto",
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page with every figure and table, in words too, of one or more backbones."""
    log = plain_console(stderr=True)
    with reported_errors():
        import burst
        import reports

        burst.make_folder(out)
        if weights and len(weights) != len(model):
            raise burst.BurstError(f"{len(weights)} --weights for {len(model)} --model; give each")
        options = burst.SurveyOptions(per_head=heads)
        shown = []
        with reports.figure_style(style):
            for name, file in zip_longest(model, weights or []):
                backbone = _backbone(name, file, text, device=device, image_size=image_size)
                stream = _inputs(
                    backbone, images, text, count=num_images, seed=seed, skip_bad=skip_bad
                )
                with Steps(log, f"{name}: batches", quiet=quiet) as progress:
                    survey = burst.survey(backbone, stream, options, progress=progress)
                w, pairs = (
                    reports.measured_whitening(backbone, stream) if whitening else (None, None)
                )
                origins = reports.measured_origins(backbone, stream) if nulls else None
                shown.append(reports.BackboneReport(survey, w, pairs, origins))
            files = reports.save_burst_report(shown, out, seed=seed)
        if not quiet:
            console = plain_console()
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN...",
            help="Folders of `burst histogram --out`, or survey.npz files; the first is what the "
            "others are compared with.",
        ),
    ],
    steps: Annotated[
        str | None,
        typer.Option(help="Of the training, one a run, such as 0,10,20; else read from names."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page, its figures and comparison.csv.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compare surveys: two models, or checkpoints of one training, block by block."""
    with reported_errors():
        import reports

        opened = reports.open_survey_runs(runs, steps=parse_steps(steps))
        table = reports.compare_surveys(opened)
        files = reports.save_comparison(opened, out) if out else []
        if quiet:
            return
        console = plain_console()
        for label, sentences in reports.comparison_words(opened, table).items():
            console.print(f"{label} against {opened[0].label}", highlight=False)
            for line in sentences:
                console.print(f"  {line}", highlight=False, soft_wrap=True)
        for line in reports.caveats(*(run.survey for run in opened)):
            console.print(line, highlight=False, soft_wrap=True)
        for line in reports.mismatches(opened):
            console.print(f"not compared: {line}", highlight=False, soft_wrap=True)
        if files:
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


@app.command(name="map")
def map_(
    photo: Annotated[
        list[str],
        typer.Argument(help="An image, or a folder, zip or plain tar of some, or `sample`."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for figures, page, tables and record.")],
    model: Model = "mae_tiny",
    weights: Weights = None,
    image_size: ImageSize = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="`all`, or blocks counted from 0; without it the first, burstiest and last."
        ),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Show where in a photograph the bursts are: in which patches, tokens and dimensions."""
    log = plain_console(stderr=True)
    with reported_errors():
        import burst
        import reports

        asked = parse_blocks(blocks) if blocks else None
        burst.make_folder(out)
        backbone = _backbone(model, weights, None, device=device, image_size=image_size)
        with Steps(log, "batches", quiet=quiet) as progress:
            found = burst.map_photos(backbone, photo, blocks=asked, progress=progress)
        shown = found.maps[0].blocks if blocks else reports.map_blocks(found.maps)
        files = reports.save_maps(found, out, blocks=shown)
        if not quiet:
            console = plain_console()
            console.print(reports.map_table(found.maps, shown))
            for name, reason in found.bad_images:
                console.print(f"left out: image {name}: {reason}", highlight=False, soft_wrap=True)
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


def _backbone(
    model: str, weights: str | None, text: Path | None, *, device: str, image_size: int | None
) -> "Backbone":
    """The model that is named; of one with two towers that of text, where a text is given."""
    import burst

    return burst.load_backbone(
        model,
        weights,
        device=burst.choose_device(device),
        image_size=image_size,
        kind="text" if text else None,
    )


def _inputs(
    backbone: "Backbone",
    images: str,
    text: Path | None,
    *,
    count: int,
    seed: int,
    skip_bad: bool,
) -> "ImageStream | TextStream":
    """What the model reads: the text where one is given, else images."""
    import burst

    if text is None:
        return burst.images_for(backbone, images, num_images=count, seed=seed, skip_bad=skip_bad)
    if images != SAMPLE:
        raise burst.BurstError(f"--images {images} and --text {text}: give one of them")
    return burst.text_for(backbone, text, num_sequences=count, seed=seed)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
