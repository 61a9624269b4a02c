"""`bpt validate`: what `burst whiten` made, tried on every benchmark that is at hand."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli._common import (
    Devices,
    Json,
    Quiet,
    parse_devices,
    parse_names,
    parse_seeds,
    plain_console,
    reported_errors,
    training_told,
)
from cli._panels import BACKBONE, DATA, MACHINE, OUTPUT, PROMPTS, STEPS, TRIALS, option


def validate(
    whitening: Annotated[Path, typer.Argument(help="A file of `burst whiten`.")],
    methods: Annotated[
        str, option("Of `bpt train`; what others are compared with is linear and vpt.", PROMPTS)
    ] = "linear,vpt,bpt-fwhiten,bpt-dwhiten",
    placement: Annotated[
        str | None,
        option("Of prompts; shallow if the file has block 0, else its last blocks.", PROMPTS),
    ] = None,
    seeds: Annotated[str, option("Of every method.", TRIALS)] = "0,1,2",
    dry_run: Annotated[
        bool, option("List what would be trained, with estimated cost.", TRIALS, "--dry-run")
    ] = False,
    data: Annotated[
        Path | None, option("Where benchmarks lie; $BPT_DATA or ./data if not given.", DATA)
    ] = None,
    datasets: Annotated[
        str | None,
        option("Such as digits,cub, or folder:PATH; all that are there if not given.", DATA),
    ] = None,
    model: Annotated[
        str | None, option("If the file's own name of its backbone does not find it.", BACKBONE)
    ] = None,
    weights: Annotated[
        str | None, option("The backbone's checkpoint, if it moved since.", BACKBONE)
    ] = None,
    epochs: Annotated[
        int | None,
        option(
            "Of classifiers, instead of the recipes'; a linear probe trains at least 100.", STEPS
        ),
    ] = None,
    batch_size: Annotated[
        int | None, option("Images a step, instead of the recipes'.", STEPS)
    ] = None,
    devices: Devices = "auto",
    precision: Annotated[str | None, option("float32, bfloat16 or float16.", MACHINE)] = None,
    workers: Annotated[int | None, option("Processes that read images.", MACHINE)] = None,
    out: Annotated[Path, option("Folder of runs, tables and page.", OUTPUT)] = Path("validate"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """See on every benchmark that is there whether prompts gain by a whitening: one page.

    Rates are the published ones where some were published for that benchmark and method, else
    searched. The same command again goes on, and takes in benchmarks that have come since.
    """
    with reported_errors():
        import bpt
        import burst
        import reports

        plan = bpt.plan_validation(
            whitening,
            data=data,
            datasets=parse_names(datasets) if datasets else None,
            methods=parse_names(methods),
            seeds=parse_seeds(seeds),
            model=model,
            weights=weights,
            placement=placement,
            epochs=epochs,
            batch_size=batch_size,
            precision=precision,
            workers=workers,
        )

        with training_told(quiet=quiet) as told:
            if say := told["say"]:
                missing = (f"{name}: {how}" for name, how in plan.missing.items())
                for line in (*plan.notes, *missing):
                    say(line)
            if dry_run:
                if as_json:
                    typer.echo(json.dumps(plan.to_dict(), indent=2))
                else:
                    plain_console().print(reports.validation_plan_table(plan))
                return
            record = bpt.validate_whitening(
                plan,
                out,
                devices=parse_devices(devices),
                **told,
            )
        files = reports.save_validation(out)
        if as_json:
            typer.echo(json.dumps(record, indent=2))
        elif not quiet:
            console = plain_console()
            console.print(reports.validation_table(record))
            for sentence in record["sentences"]:
                console.print(sentence, highlight=False, soft_wrap=True)
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)
        found = [one for entry in record["benchmarks"] for one in entry["methods"]]
        if failed := [one for one in found if one["failed"]]:
            raise burst.BurstError(
                f"{len(failed)} of {len(found)} have no number, such as {failed[0]['method']}: "
                f"{failed[0]['failed']}"
            )
