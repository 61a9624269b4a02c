"""The command `burst`: parse, call the library, print.

The libraries are imported inside the commands: PyTorch takes seconds, and `--help` must not.
"""

import json
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli._common import (
    Device,
    Json,
    Quiet,
    Steps,
    Verbose,
    add_version,
    completes,
    parse_blocks,
    parse_shrinkage,
    plain_console,
    reported_errors,
    run,
)
from cli._explain import compare, map_, spectrum
from cli._reading import (
    SAMPLE,
    Blocks,
    Convention,
    Images,
    ImageSize,
    Model,
    NumImages,
    Seed,
    SkipBad,
    Text,
    Tokens,
    Weights,
    open_backbone,
    open_inputs,
)

QUANTITIES = ["qk", "x", "qkx"]  # and logits, where asked for

app = typer.Typer(
    name="burst",
    help="See how the attention weights of a transformer are distributed.",
    add_completion=completes(),
    pretty_exceptions_enable=False,
)
add_version(app)


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="Tell all of this one: shape, licence, weights.")
    ] = None,
    library: Annotated[
        str | None,
        typer.Option(help="List what is known of hf, open_clip, timm or torchvision instead."),
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """List the known backbones; of one: shape, licence, where its weights come from and lie."""
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
        specs = burst.known_backbones() if name is None else (burst.find_backbone(name),)
        if as_json:
            records = [reports.model_record(spec) for spec in specs]
            typer.echo(json.dumps(records if name is None else records[0], indent=2))
            return
        console = plain_console()
        if name is None and not verbose:
            console.print(reports.models_table(specs))
            return
        for place, spec in enumerate(specs):
            if place:
                console.print()
            console.print(reports.model_details(spec))


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
            backbone = open_backbone(model, weights, text, device=device, image_size=image_size)
            weights_alone = not (options.need_images or text or images != SAMPLE)
            stream = (
                ()
                if weights_alone
                else open_inputs(
                    backbone, images, text, count=num_images, seed=seed, skip_bad=skip_bad
                )
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
            backbone = open_backbone(model, weights, text, device=device, image_size=image_size)
            stream = open_inputs(
                backbone, images, text, count=num_images, seed=seed, skip_bad=skip_bad
            )
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
                backbone = open_backbone(name, file, text, device=device, image_size=image_size)
                stream = open_inputs(
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


app.command()(spectrum)
app.command()(compare)
app.command(name="map")(map_)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
