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
    json_rows,
    parse_blocks,
    parse_shrinkage,
    plain_console,
    reported_errors,
    run,
)
from cli._explain import compare, map_, spectrum
from cli._panels import BACKBONE, MACHINE, MEASURED, OUTPUT, WHITENING, option
from cli._reading import (
    SAMPLE,
    Blocks,
    Convention,
    Images,
    ImageSize,
    Model,
    NumImages,
    PerHead,
    Seed,
    SkipBad,
    Style,
    Text,
    Tokens,
    Weights,
    open_backbone,
    open_inputs,
)

MEASURE = "Measure"
QUANTITIES = ["qk", "x", "qkx"]  # and logits, where asked for

app = typer.Typer(
    name="burst",
    help="See how the attention weights of a transformer are distributed.",
    add_completion=completes(),
    pretty_exceptions_enable=False,
)
add_version(app)


@app.command(rich_help_panel="Backbones")
def models(
    name: Annotated[
        str | None, typer.Argument(help="Tell all of this one: shape, licence, weights.")
    ] = None,
    library: Annotated[
        str | None,
        option("List what is known of hf, open_clip, timm or torchvision instead.", BACKBONE),
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """List the known backbones; of one: shape, licence, where its weights come from and lie."""
    with reported_errors():
        import burst
        import reports

        if library is not None:
            if name is not None:
                raise burst.BurstError(f"{name} and --library {library}: ask for one of them")
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


@app.command(rich_help_panel=MEASURE)
def histogram(
    model: Model = "mae_tiny",
    weights: Weights = None,
    image_size: ImageSize = None,
    images: Images = SAMPLE,
    text: Text = None,
    num_images: NumImages = 100,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    quantity: Annotated[
        list[str],
        option(
            "qk: W_q W_k^T; x: X; qkx: W_q W_k^T X^T; logits: what softmax is given. Repeatable.",
            MEASURED,
        ),
    ] = QUANTITIES,
    blocks: Blocks = "all",
    per_head: PerHead = False,
    tokens: Tokens = "all",
    convention: Convention = "paper",
    bins: Annotated[int, option("Bins of the stored histograms; even.", MEASURED)] = 256,
    device: Device = "auto",
    precision: Annotated[
        str,
        option(
            "Of W_q W_k^T X^T on a GPU: ieee, tf32x3 (about as good), tf32 or bf16; "
            "on a CPU it is always ieee.",
            MACHINE,
        ),
    ] = "tf32x3",
    forward_precision: Annotated[
        str, option("Of the model itself: float32, or bfloat16 or float16 (autocast).", MACHINE)
    ] = "float32",
    out: Annotated[
        Path | None,
        option("Folder for table, histograms, the whole survey, record and figures.", OUTPUT),
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
                    backbone,
                    images,
                    text,
                    count=num_images,
                    seed=seed,
                    skip_bad=skip_bad,
                    quiet=quiet or rank > 0,
                )
            )
            with Steps(log, "batches", quiet=quiet or rank > 0) as progress:
                survey = burst.survey(backbone, stream, options, progress=progress)
        if rank > 0:
            return
        files = reports.save_survey(survey, out, seed=seed) if out else []
        if as_json:
            typer.echo(json_rows(survey.table))
        elif not quiet:
            console = plain_console()
            console.print(reports.survey_table(survey))
            for line in reports.survey_notes(survey, num_images=num_images, files=files):
                console.print(line, highlight=False, soft_wrap=True)


@app.command(rich_help_panel="Whitening")
def whiten(
    out: Annotated[Path, option("File for the matrices: .pt or .safetensors.", OUTPUT)],
    model: Model = "mae_tiny",
    weights: Weights = None,
    image_size: ImageSize = None,
    images: Images = SAMPLE,
    text: Text = None,
    num_images: NumImages = 100,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    blocks: Blocks = "all",
    tokens: Tokens = "all",
    convention: Convention = "paper",
    method: Annotated[
        str,
        option(
            "zca, pca, cholesky, zca-cor or pca-cor (Kessy et al. 2018); or diagonal: each "
            "row divided by its deviation, no more.",
            WHITENING,
        ),
    ] = "zca",
    shrinkage: Annotated[
        str, option("Of the tokens' covariance: none, oas, or a number from 0 to 1.", WHITENING)
    ] = "none",
    floor: Annotated[
        float,
        option(
            "Eigenvalues (diagonal: variances) below this share of the largest are raised to it.",
            WHITENING,
        ),
    ] = 1e-6,
    through_norm: Annotated[
        bool,
        option(
            "Whiten what a prompt meets behind the block's first norm.", WHITENING, "--through-norm"
        ),
    ] = False,
    recipe: Annotated[
        str, option("`corrected`, or `authors`: what their code estimates.", WHITENING)
    ] = "corrected",
    device: Device = "auto",
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
                backbone,
                images,
                text,
                count=num_images,
                seed=seed,
                skip_bad=skip_bad,
                quiet=quiet or rank > 0,
            )
            with Steps(log, "batches", quiet=quiet or rank > 0) as progress:
                whitening = burst.whiten(backbone, stream, options, progress=progress)
            pairs = burst.whitened_histograms(backbone, stream, whitening, options)
        if rank > 0:
            return
        files = reports.save_whitening_run(whitening, pairs, out, seed=seed)
        if warning := reports.whiteness_warning(whitening):
            log.print(warning, highlight=False, soft_wrap=True)
        if as_json:
            record = [reports.plain(row) for row in reports.whitening_record(whitening, pairs)]
            typer.echo(json.dumps(record, indent=2))
        elif not quiet:
            console = plain_console()
            console.print(reports.whitening_table(whitening, pairs))
            names = ", ".join(file.name for file in files)
            console.print(f"written to {out.parent}: {names}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=MEASURE)
def report(
    out: Annotated[Path, option("Folder for the page, its figures and its tables.", OUTPUT)],
    model: Annotated[
        list[str], option("As for `burst histogram`. Repeatable: they are compared.", BACKBONE)
    ] = ["mae_tiny"],  # noqa: B006  typer copies it
    weights: Annotated[
        list[str] | None,
        option("A checkpoint for each --model, in their order, or for none.", BACKBONE),
    ] = None,
    image_size: ImageSize = None,
    images: Images = SAMPLE,
    text: Text = None,
    num_images: NumImages = 100,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    heads: Annotated[bool, option("Measure each head too.", MEASURED)] = True,
    whitening: Annotated[bool, option("Whiten, and show before and after.", MEASURED)] = True,
    nulls: Annotated[
        bool, option("Measure random weights, permuted tokens and extremes beside.", MEASURED)
    ] = True,
    device: Device = "auto",
    style: Style = "paper",
    quiet: Quiet = False,
) -> None:
    """Write one HTML page with every figure and table, in words too, of one or more backbones."""
    log = plain_console(stderr=True)
    with reported_errors():
        import burst
        import reports

        if weights and len(weights) != len(model):
            raise burst.BurstError(f"{len(weights)} --weights for {len(model)} --model; give each")
        if twice := next((one for one in model if model.count(one) > 1), None):
            raise burst.BurstError(
                f"{twice} is named twice; `burst compare` sets two checkpoints beside each other"
            )
        burst.make_folder(out)
        options = burst.SurveyOptions(per_head=heads)
        shown = []
        with reports.figure_style(style):
            for name, file in zip_longest(model, weights or []):
                backbone = open_backbone(name, file, text, device=device, image_size=image_size)
                stream = open_inputs(
                    backbone,
                    images,
                    text,
                    count=num_images,
                    seed=seed,
                    skip_bad=skip_bad,
                    quiet=quiet,
                )
                with Steps(log, f"{name}: batches", quiet=quiet) as progress:
                    survey = burst.survey(backbone, stream, options, progress=progress)
                w, pairs, origins = None, None, None
                if whitening:
                    with Steps(log, f"{name}: whitening", quiet=quiet) as progress:
                        w, pairs = reports.measured_whitening(backbone, stream, progress=progress)
                if nulls:
                    with Steps(log, f"{name}: what explains it", quiet=quiet) as progress:
                        origins = reports.measured_origins(backbone, stream, progress=progress)
                shown.append(reports.BackboneReport(survey, w, pairs, origins))
            files = reports.save_burst_report(shown, out, seed=seed)
        if not quiet:
            console = plain_console()
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


app.command(rich_help_panel=MEASURE)(spectrum)
app.command(name="map", rich_help_panel=MEASURE)(map_)
app.command(rich_help_panel=MEASURE)(compare)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
