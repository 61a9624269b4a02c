"""`burst spectrum`, `burst compare` and `burst map`: what is behind the distributions."""

from pathlib import Path
from typing import Annotated

import typer

from cli._common import (
    Device,
    Json,
    Quiet,
    Steps,
    json_rows,
    parse_blocks,
    parse_numbers,
    plain_console,
    reported_errors,
)
from cli._panels import MEASURED, OUTPUT, TRIALS, option
from cli._reading import (
    Blocks,
    ImageSize,
    Model,
    PerHead,
    Weights,
    open_backbone,
)

LISTED = 8  # photographs in the terminal's table


def spectrum(
    model: Model = "mae_tiny",
    weights: Weights = None,
    blocks: Blocks = "all",
    per_head: PerHead = False,
    out: Annotated[
        Path | None, option("Folder for table, singular values, record and figure.", OUTPUT)
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
            typer.echo(json_rows(found.table))
        elif not quiet:
            console = plain_console()
            console.print(reports.spectrum_table(found))
            for line in reports.spectrum_notes(found, files=files):
                console.print(line, highlight=False, soft_wrap=True)


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
        option("Of the training, one a run, such as 0,10,20; else read from names.", TRIALS),
    ] = None,
    out: Annotated[
        Path | None, option("Folder for the page, its figures and comparison.csv.", OUTPUT)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Compare surveys: two models, or checkpoints of one training, block by block."""
    with reported_errors():
        import reports

        opened = reports.open_survey_runs(
            runs, steps=parse_numbers(steps, "--steps", example="0,10,20")
        )
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


def map_(
    photo: Annotated[
        list[str],
        typer.Argument(help="An image, or a folder, zip or plain tar of some, or `sample`."),
    ],
    out: Annotated[Path, option("Folder for figures, page, tables and record.", OUTPUT)],
    model: Model = "mae_tiny",
    weights: Weights = None,
    image_size: ImageSize = None,
    blocks: Annotated[
        str | None,
        option(
            "`all`, or blocks counted from 0; without it the first, burstiest and last.", MEASURED
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
        backbone = open_backbone(model, weights, None, device=device, image_size=image_size)
        with Steps(log, "batches", quiet=quiet) as progress:
            found = burst.map_photos(backbone, photo, blocks=asked, progress=progress)
        shown = found.maps[0].blocks if blocks else reports.map_blocks(found.maps)
        with Steps(log, "figures", quiet=quiet) as progress:
            files = reports.save_maps(found, out, blocks=shown, progress=progress)
        if not quiet:
            console = plain_console()
            console.print(reports.map_table(found.maps[:LISTED], shown))
            if (more := len(found.maps) - LISTED) > 0:
                line = f"and {more} more photographs, on the page and in map.csv"
                console.print(line, highlight=False)
            for name, reason in found.bad_images:
                console.print(f"left out: image {name}: {reason}", highlight=False, soft_wrap=True)
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)
