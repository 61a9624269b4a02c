"""`bpt study`: the tables of the paper as trainings."""

from pathlib import Path
from typing import Annotated

import typer

from cli._common import (
    Devices,
    Quiet,
    parse_devices,
    parse_names,
    parse_seeds,
    plain_console,
    reported_errors,
    training_told,
)
from cli._panels import BACKBONE, COCO, DATA, MACHINE, OUTPUT, STEPS, TRIALS, option


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="table11, fgvc_mae, fgvc_moco, variants, prompt_length, prompt_width, table9, "
            "table10, coco_mask_rcnn or coco_cascade."
        ),
    ],
    search: Annotated[
        bool,
        option(
            "Search rate and decay on validation images where none was published; else the "
            "nearest published ones are taken.",
            TRIALS,
            "--search",
        ),
    ] = False,
    only: Annotated[
        str,
        option("Of the runs that --dry-run lists these alone, such as cub-*-bpt-*.", TRIALS),
    ] = "",
    seeds: Annotated[str, option("Such as 0,1,2: mean and spread.", TRIALS)] = "0",
    dry_run: Annotated[
        bool, option("List the runs with their estimated cost.", TRIALS, "--dry-run")
    ] = False,
    dataset: Annotated[
        str | None, option("Instead of the table's: folder:PATH, coco:PATH.", DATA)
    ] = None,
    data: Annotated[str | None, option("Where the datasets lie.", DATA)] = None,
    train_fraction: Annotated[
        float | None, option("Share of each class's training images.", DATA)
    ] = None,
    protocol: Annotated[
        str | None,
        option("standard (if not given), authors, last; `published`: each number's own.", DATA),
    ] = None,
    model: Annotated[str | None, option("Instead of the table's.", BACKBONE)] = None,
    weights: Annotated[str | None, option("A checkpoint file, or `random`.", BACKBONE)] = None,
    image_size: Annotated[
        int | None,
        option("Pixels a side; the pretraining's, of detectors 1024.", BACKBONE),
    ] = None,
    normalisation: Annotated[str, option("native or reference.", BACKBONE)] = "native",
    epochs: Annotated[int | None, option("Instead of the recipes'.", STEPS)] = None,
    batch_size: Annotated[int | None, option("Instead of the recipes'.", STEPS)] = None,
    schedule: Annotated[str | None, option("Of detectors, instead of the recipes'.", COCO)] = None,
    channels: Annotated[int | None, option("Of detectors; 256.", COCO)] = None,
    devices: Devices = "auto",
    precision: Annotated[str, option("float32, bfloat16 or float16.", MACHINE)] = "float32",
    accumulation: Annotated[
        int | None, option("Parts a step is cut into, for memory.", MACHINE)
    ] = None,
    workers: Annotated[int, option("Processes that read images.", MACHINE)] = 0,
    cache: Annotated[bool | None, option("Decode each image once.", MACHINE)] = None,
    out: Annotated[Path | None, option("Folder; studies/NAME if not given.", OUTPUT)] = None,
    quiet: Quiet = False,
) -> None:
    """Train what a table of the paper compares, and set our numbers beside the published ones.

    The same command again skips what is finished and goes on with the rest.
    """
    with reported_errors():
        import bpt
        import burst
        import reports
        from reports.study import PUBLISHED

        if search and protocol == PUBLISHED:
            raise burst.BurstError(
                "--search chooses on validation images, and those of BPT and SPT were published "
                "without any: leave --search or --protocol published out"
            )
        cells = reports.study_cells(
            name,
            only=parse_names(only) if only else (),
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
            plain_console().print(reports.plan_table(cells, chosen, search=search))
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
