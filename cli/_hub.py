"""`bpt push` and `bpt pull`: trained prompts on the Hugging Face hub."""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli._common import Json, Quiet, plain_console, reported_errors
from cli._panels import OUTPUT, option

Repository = Annotated[str, typer.Argument(help="ORG/NAME on the hub.", metavar="ORG/NAME")]


def push(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.", metavar="RUN")],
    repository: Repository,
    private: Annotated[bool, option("Make a new repository private.", OUTPUT, "--private")] = False,
    dry_run: Annotated[
        bool, option("Write what would be pushed, and push nothing.", OUTPUT, "--dry-run")
    ] = False,
    out: Annotated[Path | None, option("Folder for --dry-run; NAME if not given.", OUTPUT)] = None,
    yes: Annotated[bool, option("Do not ask before the upload.", OUTPUT, "--yes")] = False,
    quiet: Quiet = False,
) -> None:
    """Share a trained prompt: tensors, configuration and a model card, in one commit.

    Log in before with `hf auth login`, or set HF_TOKEN.
    """
    with reported_errors():
        import burst
        from bpt.hub import check_repository, push_files, write_new
        from bpt.hub_folder import write_hub_folder
        from bpt.run_folder import open_run

        check_repository(repository)
        if out and not dry_run:
            raise burst.BurstError("--out is for --dry-run; leave it out, or add --dry-run")
        run = open_run(folder)
        if dry_run:
            where = out or Path(repository.rpartition("/")[2])
            write_new(where, lambda part: write_hub_folder(run, part, repository))
            if not quiet:
                _show(sorted(where.iterdir()), f"for {repository}")
                line = f"written to {where}, nothing was pushed; to push: "
                line += f"bpt push {folder} {repository}{' --private' if private else ''}"
                plain_console().print(line, highlight=False, soft_wrap=True)
            return
        asks = not yes
        if asks and not _on_terminal():
            raise burst.BurstError(
                "nobody is there to be asked before the upload; look at what would be pushed with "
                "--dry-run, and push it with --yes"
            )
        with tempfile.TemporaryDirectory() as temporary:
            files = write_hub_folder(run, Path(temporary), repository)
            if asks or not quiet:
                _show(files, f"to {repository}{', private if it is new' if private else ''}")
            if asks:
                typer.confirm("Push these files?", abort=True, err=True)
            with _client_bars(show=not quiet and sys.stderr.isatty()):
                page = push_files(files, repository, private=private or None)
        if not quiet:
            console = plain_console()
            console.print(f"pushed: {page}", highlight=False, soft_wrap=True)
            console.print(
                f'to use: bpt.load_prompt("{repository}")', highlight=False, soft_wrap=True
            )


def _on_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


@contextmanager
def _client_bars(*, show: bool) -> Iterator[None]:
    """The bars of the hub's client, which draws them elsewhere than on terminals too."""
    from huggingface_hub import utils as client

    if show or client.are_progress_bars_disabled():  # type: ignore[attr-defined, unused-ignore]
        yield
        return
    client.disable_progress_bars()  # type: ignore[attr-defined, unused-ignore]
    try:
        yield
    finally:
        client.enable_progress_bars()  # type: ignore[attr-defined, unused-ignore]


def _show(files: Sequence[Path], where: str) -> None:
    """Names and sizes, on stderr."""
    from burst.downloads import in_bytes

    log = plain_console(stderr=True)
    log.print(f"{where}:", highlight=False, soft_wrap=True)
    for file in files:
        log.print(f"  {file.name:18} {in_bytes(file.stat().st_size):>11}", highlight=False)


def pull(
    repository: Repository,
    out: Annotated[Path | None, option("A new folder; NAME if not given.", OUTPUT)] = None,
    revision: Annotated[
        str | None, option("Branch, tag or commit; the newest if not given.", OUTPUT)
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fetch a prompt that was pushed; `bpt predict` and `bpt evaluate` read the folder."""
    with reported_errors():
        from bpt.hub import pull_prompt
        from bpt.run_folder import open_run

        where = pull_prompt(
            repository, out or Path(repository.rpartition("/")[2]), revision=revision
        )
        run = open_run(where)
        result = run.result or {}
        record = {
            "folder": str(where),
            "backbone": run.config["backbone"]["name"],
            "method": run.recipe.method,
            "dataset": run.config["dataset"]["name"],
            "classes": len(run.classes),
            "test_accuracy": result.get("test_accuracy"),
        }
        if as_json:
            typer.echo(json.dumps(record, indent=2))
        elif not quiet:
            console = plain_console()
            console.print(
                f"pulled {repository}: {record['method']} on {record['backbone']}, "
                f"{record['classes']} classes of {record['dataset']}",
                highlight=False,
                soft_wrap=True,
            )
            line = f"written to {where}; to use: bpt predict {where} PHOTO"
            console.print(line, highlight=False, soft_wrap=True)
