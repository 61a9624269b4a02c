"""`bpt validate`: what `burst whiten` made, tried on every benchmark that is at hand."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli._common import (
    Json,
    Quiet,
    parse_devices,
    parse_names,
    parse_seeds,
    plain_console,
    reported_errors,
    training_told,
)


def validate(
    whitening: Annotated[Path, typer.Argument(help="A file of `burst whiten`.")],
    data: Annotated[
        Path | None, typer.Option(help="Where benchmarks lie; $BPT_DATA or ./data if not given.")
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(help="Such as digits,cub, or folder:PATH; all that are there if not given."),
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Of `bpt train`; what others are compared with is linear and vpt.")
    ] = "linear,vpt,bpt-fwhiten,bpt-dwhiten",
    seeds: Annotated[str, typer.Option(help="Of every method.")] = "0,1,2",
    placement: Annotated[
        str | None,
        typer.Option(help="Of prompts; shallow if the file has block 0, else its last blocks."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="If the file's own name of its backbone does not find it.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="The backbone's checkpoint, if it moved since.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of classifiers, instead of the recipes'.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, instead of the recipes'.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    devices: Annotated[
        str, typer.Option(help="One training at a time on each: auto, or cuda:0,cuda:1.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be trained, with estimated cost.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of runs, tables and page.")] = Path("validate"),
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
