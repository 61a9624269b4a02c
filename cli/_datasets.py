"""`bpt datasets`: what is known, what of it is here, how to get the rest."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli._common import Json, Steps, Verbose, plain_console, reported_errors
from cli._panels import DATA, option


def datasets(
    name: Annotated[
        str | None, typer.Argument(help="Tell all of this one: licence, source, how to get it.")
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(help="Count this dataset's images and classes, and read every image."),
    ] = None,
    download: Annotated[
        str | None, typer.Option(help="Fetch this dataset, where its licence and site allow it.")
    ] = None,
    data: Annotated[
        Path | None, option("Where to look; $BPT_DATA or ./data if not given.", DATA)
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """List the known datasets; of one: classes, sizes, licence, where it is or how to get it."""
    with reported_errors():
        import burst

        for option, other in {"check": check, "download": download}.items():
            if name is not None and other is not None:
                raise burst.BurstError(f"{name} and --{option} {other}: name one of them")
        if download is not None:
            _download(download, data)
        if check is not None:
            _check(check, data, as_json=as_json)
        elif download is None:
            _list(name, data, verbose=verbose, as_json=as_json)


def _download(name: str, data: Path | None) -> None:
    import bpt

    log = plain_console(stderr=True)
    info = bpt.dataset_info(name)
    with Steps(log, "bytes") as progress:
        place = bpt.download_dataset(info, data, progress=progress, say=log.print)
    log.print(f"{info.name} lies in {place}", highlight=False, soft_wrap=True)


def _check(name: str, data: Path | None, *, as_json: bool) -> None:
    import bpt
    import reports

    log = plain_console(stderr=True)
    info = bpt.dataset_info(name)
    opener = bpt.open_coco if info.task == "detection" else bpt.open_dataset
    opened = opener(name, data, say=log.print)
    with Steps(log, "images") as progress:
        found = bpt.check_dataset(info, opened, progress=progress)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        plain_console().print(reports.check_table(found))
    raise typer.Exit(0 if found.good else 2)


def _list(name: str | None, data: Path | None, *, verbose: bool, as_json: bool) -> None:
    import bpt
    import reports

    known = bpt.known_datasets() if name is None else (bpt.dataset_info(name),)
    if as_json:
        records = [reports.dataset_record(info, data) for info in known]
        typer.echo(json.dumps(records if name is None else records[0], indent=2))
        return
    console = plain_console()
    if name is None and not verbose:
        console.print(reports.datasets_table(known, data))
        return
    for place, info in enumerate(known):
        if place:
            console.print()
        console.print(reports.dataset_details(info, data))
