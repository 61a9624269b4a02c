"""The command `bpt`: parse, call the library, print.

The libraries are imported inside the commands: PyTorch takes seconds, and `--help` must not.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cli._common import (
    USER_ERROR,
    Device,
    Json,
    add_version,
    check_not_typed,
    completes,
    json_rows,
    plain_console,
    reported_errors,
    run,
)
from cli._datasets import datasets
from cli._hub import pull, push
from cli._panels import BACKBONE, DATA, OUTPUT, option
from cli._reading import Style
from cli._search import search
from cli._study import study
from cli._training import train
from cli._validate import validate

app = typer.Typer(
    name="bpt",
    help="Train prompts of a Vision Transformer, and see whether whitening them helps.",
    add_completion=completes(),
    pretty_exceptions_enable=False,
)
add_version(app)

Run = Annotated[Path, typer.Argument(help="The folder of a run, as `bpt train --out` wrote it.")]
Moved = Annotated[
    str | None, option("Where the backbone's checkpoint lies, if it moved.", BACKBONE)
]


TRAIN, RUNS, SHARE = "Train", "Use what was trained", "Share on the hub"
app.command(rich_help_panel="Data")(datasets)
app.command(rich_help_panel=TRAIN)(train)
app.command(rich_help_panel=TRAIN)(search)
app.command(rich_help_panel=TRAIN)(validate)
app.command(rich_help_panel=TRAIN)(study)
app.command(rich_help_panel=SHARE)(push)
app.command(rich_help_panel=SHARE)(pull)


@app.command(rich_help_panel=RUNS)
def evaluate(
    folder: Run,
    split: Annotated[
        str | None,
        option("train, val or test; of a detector train or val (the default).", DATA),
    ] = None,
    data: Annotated[str | None, option("Where the dataset lies, if it moved.", DATA)] = None,
    weights: Moved = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a run on a split, class by class; of a detector, average precision of what it finds."""
    with reported_errors():
        import bpt
        import burst
        import reports

        with burst.process_group() as (rank, _):
            path, above = None, ""
            run = bpt.open_run(folder, weights=weights)
            if isinstance(run, bpt.DetectionRun):
                scores, path = bpt.evaluate_detector(run, split or "val", data=data, device=device)
                record: dict[str, Any] = scores.values
                tables = [
                    reports.detection_table(scores.values),
                    reports.detection_classes_table(scores.per_class),
                ]
            else:
                found = bpt.evaluate_run(run, split or "test", data=data, device=device)
                record, tables = asdict(found), [reports.evaluation_table(found)]
                above = reports.evaluation_line(found)
        if rank > 0:
            return
        if as_json:
            typer.echo(json.dumps(reports.plain(record), indent=2))
            return
        console = plain_console()
        if above:
            console.print(above, highlight=False, soft_wrap=True)
        for table in tables:
            console.print(table)
        if path:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=RUNS)
def predict(
    context: typer.Context,
    folder: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or archives.")],
    top: Annotated[int, option("How many classes to name.", OUTPUT)] = 5,
    threshold: Annotated[
        float,
        option("Of a detector: least score of an object that is shown, 0.05 or more.", OUTPUT),
    ] = 0.5,
    out: Annotated[
        Path, option("Of a detector: folder for the pictures that it draws.", OUTPUT)
    ] = Path("predictions"),
    weights: Moved = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Name the most likely classes of images; of a detector, draw the objects that it finds.

    Images that cannot be read are left out, each with a line on stderr; the exit code is 2 then.
    """
    with reported_errors():
        import bpt
        import reports

        run = bpt.open_run(folder, weights=weights)
        bad: list[str] = []
        if isinstance(run, bpt.DetectionRun):
            check_not_typed(context, ("top",), f"is for classifiers; {folder} is a detector")
            found = bpt.predict_objects(
                run, images, threshold=threshold, device=device, on_bad=bad.append
            )
            answers = reports.save_predictions(found, out)
            table = reports.objects_table(answers)
        else:
            why = f"is for detectors; {folder} is a classifier"
            check_not_typed(context, ("threshold", "out"), why)
            answers = bpt.predict(run, images, top=top, device=device, on_bad=bad.append)
            table = reports.predictions_table(answers)
        if as_json:
            typer.echo(json.dumps(reports.plain(answers), indent=2, allow_nan=False))
        elif answers:
            plain_console().print(table)
        for line in bad:
            typer.echo(f"error: {line}", err=True)
        if bad:
            raise typer.Exit(USER_ERROR)


@app.command(rich_help_panel=RUNS)
def export(
    folder: Run,
    out: Annotated[Path, option("A .safetensors file: plain prompt tokens and head.", OUTPUT)],
    program: Annotated[
        Path | None,
        option(
            "A .pt2 file: the whole model, as torch.export traces it. Not of a detector.", OUTPUT
        ),
    ] = None,
    weights: Moved = None,
) -> None:
    """Write a run's trained model for use elsewhere, every prompt as plain tokens."""
    with reported_errors():
        import bpt
        import burst

        run = bpt.open_run(folder, weights=weights)
        if not isinstance(run, bpt.DetectionRun):
            bpt.export_run(run, out, program=program)
        elif program is None:
            bpt.export_detector(run, out)
        else:
            raise burst.BurstError(f"{folder} is a detector; --program is for classifiers")
        files = ", ".join(str(path) for path in (out, program) if path)
        plain_console().print(f"written: {files}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=RUNS)
def report(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, or of one search.")],
    out: Annotated[Path, option("Folder for the page, its figures and its tables.", OUTPUT)],
    data: Annotated[str | None, option("Where the dataset lies, if it moved.", DATA)] = None,
    confusion: Annotated[
        bool,
        option("Draw confusion matrices; for runs of earlier versions images are read.", OUTPUT),
    ] = True,
    style: Style = "paper",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare runs: one HTML page with curves, prompts, confusions and the published numbers.

    Of detectors: scores, classes, who finds what, pictures side by side. Of a search: its page.
    """
    with reported_errors():
        import bpt
        import burst
        import reports

        # A folder that two patterns match is one.
        folders = list({folder.resolve(): folder for folder in folders}.values())
        if any(reports.is_search(folder) for folder in folders):
            why = "is for runs; the page of a search is made of what it recorded"
            check_not_typed(context, ("data", "device", "confusion"), why)
            _report_search(folders, out, style, as_json=as_json)
            return
        runs = [bpt.open_run(folder) for folder in folders]
        detectors = [run for run in runs if isinstance(run, bpt.DetectionRun)]
        classifiers = [run for run in runs if not isinstance(run, bpt.DetectionRun)]
        if detectors and classifiers:
            raise burst.BurstError(
                f"{detectors[0].folder} is a detector and {classifiers[0].folder} a classifier; "
                "report them one kind at a time"
            )
        burst.make_folder(out)  # before long work
        with reports.figure_style(style):
            if detectors:
                why = f"is for classifiers; {detectors[0].folder} is a detector"
                check_not_typed(context, ("device", "confusion"), why)
                files, table = reports.report_detectors(detectors, out, data=data)
            else:
                files = reports.save_bpt_report(
                    classifiers, out, data=data, device=device, confusion=confusion
                )
                table = reports.compare(classifiers)
        if as_json:
            typer.echo(json_rows(table))
        else:
            console = plain_console()
            shown = reports.detectors_table if detectors else reports.comparison_table
            console.print(shown(table))
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


def _report_search(folders: list[Path], out: Path, style: str, *, as_json: bool) -> None:
    import burst
    import reports

    if len(folders) > 1:
        raise burst.BurstError(f"{len(folders)} folders given; report one search at a time")
    with reports.figure_style(style):
        files = reports.save_search_report(folders[0], out)
    table = reports.methods_frame(reports.open_search(folders[0]))
    if as_json:
        typer.echo(json_rows(table))
        return
    console = plain_console()
    console.print(reports.frame_table(table))
    console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
