"""`bpt study`: the tables of the paper as trainings."""

from pathlib import Path
from typing import Annotated

import typer

from cli._common import (
    Quiet,
    parse_devices,
    parse_seeds,
    plain_console,
    reported_errors,
    training_told,
)


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="table11, fgvc_mae, fgvc_moco, variants, prompt_length, prompt_width, table9, "
            "table10, coco_mask_rcnn or coco_cascade."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs with their estimated cost.")
    ] = False,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Search rate and decay on validation images where none was published; else the "
            "nearest published ones are taken.",
        ),
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of the table's: folder:PATH, coco:PATH.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Where the datasets lie.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of the table's.")] = None,
    weights: Annotated[str | None, typer.Option(help="A checkpoint file, or `random`.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipes'.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of detectors, instead of the recipes'.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Pixels a side; the pretraining's, of detectors 1024."),
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Of detectors; 256.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the recipes'.")] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Parts a step is cut into, for memory.")
    ] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of each class's training images.")
    ] = None,
    normalisation: Annotated[str, typer.Option(help="native or reference.")] = "native",
    protocol: Annotated[
        str | None,
        typer.Option(help="standard (if not given); `authors`, as the published numbers."),
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2: mean and spread.")] = "0",
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    cache: Annotated[bool | None, typer.Option(help="Decode each image once.")] = None,
    devices: Annotated[
        str, typer.Option(help="One run at a time on each: auto, or cuda:0,cuda:1.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder; studies/NAME if not given.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train what a table of the paper compares, and set our numbers beside the published ones.

    The same command again skips what is finished and goes on with the rest.
    """
    with reported_errors():
        import bpt
        import burst
        import reports

        cells = reports.study_cells(
            name,
            dataset=dataset,
            data=data,
            model=model,
            weights=weights,
            epochs=epochs,
            schedule=schedule,
            image_size=image_size,
            channels=channels,
            batch_size=batch_size,
            accumulation=accumulation,
            train_fraction=train_fraction,
            normalisation=normalisation,
            protocol=protocol,
            precision=precision,
            workers=workers,
            cache=cache,
        )
        chosen = parse_seeds(seeds)
        if dry_run:
            plain_console().print(reports.plan_table(cells, len(chosen)))
            return
        where = burst.make_folder(out or Path("studies") / name)

        with training_told(quiet=quiet) as told:
            results = bpt.run_study(
                reports.study_recipes(cells),
                where,
                seeds=chosen,
                devices=parse_devices(devices),
                search=search,
                **told,
            )
        frame = reports.study_frame(cells, results)
        files = reports.save_study(frame, where, name)
        if not quiet:
            console = plain_console()
            console.print(reports.study_table(frame))
            names = ", ".join(str(file) for file in files)
            console.print(f"written: {names}", highlight=False, soft_wrap=True)
        failed = [one for one, outcome in results.items() if isinstance(outcome, str)]
        if failed:
            raise burst.BurstError(
                f"{len(failed)} of {len(results)} trainings failed, such as {failed[0]}: "
                f"{results[failed[0]]}"
            )
