"""The command `bpt`: parse, call the library, print.

The libraries are imported inside the commands: PyTorch takes seconds, and `--help` must not.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from cli._common import Steps, add_version, parse_seeds, reported_errors, run

app = typer.Typer(
    name="bpt",
    help="Train prompts of a Vision Transformer, and see whether whitening them helps.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_version(app)

Run = Annotated[Path, typer.Argument(help="The folder of a run, as `bpt train --out` wrote it.")]
Device = Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda`, `cuda:1` ...")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors and warnings.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def datasets(
    check: Annotated[
        str | None,
        typer.Option(help="Count this dataset's images and classes, and read every image."),
    ] = None,
    download: Annotated[
        str | None, typer.Option(help="Fetch this dataset, where its licence and site allow it.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Where to look; $BPT_DATA or ./data if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the known datasets: classes, sizes, licence, found or how to get them."""
    with reported_errors():
        import bpt
        import reports

        log = Console(stderr=True)
        if download is not None:
            info = bpt.dataset_info(download)
            with Steps(log, "bytes") as progress:
                place = bpt.download_dataset(info, data, progress=progress, say=log.print)
            log.print(f"{info.name} lies in {place}", highlight=False, soft_wrap=True)
        if check is not None:
            info = bpt.dataset_info(check)
            opened = bpt.open_dataset(check, data, say=log.print)
            with Steps(log, "images") as progress:
                found = bpt.check_dataset(info, opened, progress=progress)
            if as_json:
                typer.echo(json.dumps(asdict(found), indent=2))
            else:
                Console().print(reports.check_table(found))
            raise typer.Exit(0 if found.good else 2)
        if download is None:
            known = bpt.known_datasets()
            if as_json:
                records = [reports.dataset_record(info, data) for info in known]
                typer.echo(json.dumps(records, indent=2))
            else:
                Console().print(reports.datasets_table(known, data))


@app.command()
def train(
    dataset: Annotated[
        str, typer.Argument(help="A name from `bpt datasets`, or folder:PATH.")
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            help="A name from `burst models`, or any timm ViT as timm:NAME; mae_tiny for digits "
            "and folder, else mae_vitb."
        ),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A checkpoint file, or `random`.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Where the dataset lies, unpacked or not; $BPT_DATA or ./data."),
    ] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of each class's training images, such as 0.1.")
    ] = None,
    train_list: Annotated[
        str | None, typer.Option(help="imagenet: a file that names the training images.")
    ] = None,
    normalisation: Annotated[
        str,
        typer.Option(
            help="native: as the backbone was pretrained; reference: ImageNet's for all, as the "
            "published numbers."
        ),
    ] = "native",
    method: Annotated[
        str,
        typer.Option(
            help="vpt, spt, bpt-fwhiten, bpt-twhiten, bpt-bilinear; linear (a head on frozen "
            "features) or full (fine-tuning of all weights)."
        ),
    ] = "bpt-bilinear",
    placement: Annotated[
        str | None,
        typer.Option(
            help="shallow (if not given), deep, last:4, first:4, 3+1 (first 3 and last 1), "
            "interval:4."
        ),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(help="Prompt tokens a prompted block; 100, published deep: 50.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Of bpt-bilinear: columns of its two factors; 75.")
    ] = None,
    spt_tokens: Annotated[
        str | None,
        typer.Option(help="What spt starts from: random (if not given), mean, max or kmeans."),
    ] = None,
    bilinear_init: Annotated[
        str | None,
        typer.Option(
            help="Start of bpt-bilinear's right factor: xavier, or whitening (with --whitening)."
        ),
    ] = None,
    whitening: Annotated[
        str | None,
        typer.Option(help="A file of `burst whiten`; else made from the training images."),
    ] = None,
    pooling: Annotated[
        str,
        typer.Option(help="default, prompts+patches, patches, prompts or token."),
    ] = "default",
    after: Annotated[
        str | None,
        typer.Option(
            help="Prompt tokens behind the last prompted block: carry (if not given) or drop."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the images; 100, for digits 10.")
    ] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="With a rising learning rate; a tenth of the epochs.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all processes; 32.")
    ] = None,
    accumulation: Annotated[int, typer.Option(help="Parts a step is cut into, for memory.")] = 1,
    optimizer: Annotated[str | None, typer.Option(help="adamw, sgd or lars.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate. This and what follows: as published, if it was."),
    ] = None,
    min_lr: Annotated[
        float | None, typer.Option(help="Learning rate at the end of the cosine; 1e-8.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of prompts; for full, of all matrices.")
    ] = None,
    head_weight_decay: Annotated[
        float | None, typer.Option(help="Of the head; not for full.")
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="full: factor of the rate from a block to the one before.")
    ] = None,
    drop_path: Annotated[
        float | None, typer.Option(help="full: stochastic depth of the last block.")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    use_compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    ema_decay: Annotated[
        float | None, typer.Option(help="Evaluate and keep a moving average, such as 0.999.")
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="`standard`: epoch chosen on val, test read once; `authors`: trained on "
            "train + val, last epoch and best on test."
        ),
    ] = "standard",
    seed: Annotated[int, typer.Option(help="Of start, order and augmentation.")] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several, such as 0,1,2: mean and spread.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    cache: Annotated[
        bool, typer.Option(help="Decode each image once, into $BPT_CACHE or ~/.cache/bpt.")
    ] = True,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/DATASET-MODEL-METHOD-... if not given.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train prompts and a head on a frozen backbone, and say how good they are."""
    log = Console(stderr=True)
    with reported_errors():
        import bpt
        import burst
        import reports

        recipe = bpt.recipe_for(
            dataset,
            data=data,
            train_fraction=train_fraction,
            train_list=train_list,
            model=model,
            weights=weights,
            normalisation=normalisation,
            method=method,
            placement=placement,
            num_prompts=num_prompts,
            rank=rank,
            spt_tokens=spt_tokens,
            bilinear_init=bilinear_init,
            whitening=whitening,
            pooling=pooling,
            after=after,
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            accumulation=accumulation,
            optimizer=optimizer,
            lr=lr,
            min_lr=min_lr,
            weight_decay=weight_decay,
            head_weight_decay=head_weight_decay,
            layer_decay=layer_decay,
            drop_path=drop_path,
            precision=precision,
            compile=use_compile,
            ema_decay=ema_decay,
            protocol=protocol,
            seed=seed,
            workers=workers,
            cache=cache,
        )
        several = parse_seeds(seeds) if seeds else None
        where = out or bpt.default_folder(recipe, several=several is not None)

        def say(text: str) -> None:
            log.print(text, highlight=False, soft_wrap=True)

        with Steps(log, "steps", quiet=quiet or not log.is_terminal) as progress:
            shared = {
                "device": device,
                "resume": resume,
                "progress": progress,
                "say": None if quiet else say,
            }
            if several is None:
                result = bpt.train(recipe, where, **shared)  # type: ignore[arg-type]
            else:
                result = bpt.train_seeds(recipe, several, where, **shared)  # type: ignore[arg-type]
        if burst.is_first_process():
            if as_json:
                typer.echo(json.dumps(result, indent=2))
            elif not quiet:
                console = Console()
                console.print(reports.result_table(result))
                console.print(f"written to {where}", highlight=False, soft_wrap=True)


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="table11, fgvc_mae, fgvc_moco, variants, prompt_length, prompt_width, table9 or "
            "table10."
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs with their estimated cost.")
    ] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Instead of the table's, such as folder:PATH.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Where the datasets lie.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of the table's.")] = None,
    weights: Annotated[str | None, typer.Option(help="A checkpoint file, or `random`.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipes'.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the recipes'.")] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of each class's training images.")
    ] = None,
    normalisation: Annotated[str, typer.Option(help="native or reference.")] = "native",
    protocol: Annotated[
        str, typer.Option(help="standard; `authors`, as the published numbers.")
    ] = "standard",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2: mean and spread.")] = "0",
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    cache: Annotated[bool, typer.Option(help="Decode each image once.")] = True,
    devices: Annotated[
        str, typer.Option(help="One run at a time on each: auto, or cuda:0,cuda:1.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder; studies/NAME if not given.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train what a table of the paper compares, and set our numbers beside the published ones.

    The same command again skips what is finished and goes on with the rest.
    """
    log = Console(stderr=True)
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
            batch_size=batch_size,
            train_fraction=train_fraction,
            normalisation=normalisation,
            protocol=protocol,
            precision=precision,
            workers=workers,
            cache=cache,
        )
        chosen = parse_seeds(seeds)
        if dry_run:
            Console().print(reports.plan_table(cells, len(chosen)))
            return
        where = burst.make_folder(out or Path("studies") / name)

        def say(text: str) -> None:
            log.print(text, highlight=False, soft_wrap=True)

        with Steps(log, "steps", quiet=quiet or not log.is_terminal) as progress:
            results = bpt.run_study(
                reports.study_recipes(cells),
                where,
                seeds=chosen,
                devices=[str(burst.choose_device(device)) for device in devices.split(",")],
                progress=progress,
                say=None if quiet else say,
            )
        frame = reports.study_frame(cells, results)
        files = reports.save_study(frame, where, name)
        if not quiet:
            console = Console()
            console.print(reports.study_table(frame))
            names = ", ".join(str(file) for file in files)
            console.print(f"written: {names}", highlight=False, soft_wrap=True)
        failed = [one for one, outcome in results.items() if isinstance(outcome, str)]
        if failed:
            raise burst.BurstError(
                f"{len(failed)} of {len(results)} trainings failed, such as {failed[0]}: "
                f"{results[failed[0]]}"
            )


@app.command()
def evaluate(
    folder: Run,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    data: Annotated[str | None, typer.Option(help="Where the dataset lies, if it moved.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a run's best epoch on a split, class by class."""
    with reported_errors():
        import bpt
        import burst
        import reports

        with burst.process_group() as (rank, _):
            run = bpt.open_run(folder)
            found = bpt.evaluate_run(run, split, data=data, device=device)
        if rank > 0:
            return
        if as_json:
            typer.echo(json.dumps(reports.plain(asdict(found)), indent=2))
        else:
            Console().print(reports.evaluation_table(found))


@app.command()
def predict(
    folder: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or archives.")],
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Name the most likely classes of images."""
    with reported_errors():
        import bpt
        import reports

        run = bpt.open_run(folder)
        answers = bpt.predict(run, images, top=top, device=device)
        if as_json:
            typer.echo(json.dumps(answers, indent=2))
        else:
            Console().print(reports.predictions_table(answers))


@app.command()
def export(
    folder: Run,
    out: Annotated[Path, typer.Option(help="A .safetensors file: plain prompt tokens and head.")],
    program: Annotated[
        Path | None, typer.Option(help="A .pt2 file: the whole model, as torch.export traces it.")
    ] = None,
) -> None:
    """Write a run's best epoch for use elsewhere, every prompt as plain tokens."""
    with reported_errors():
        import bpt

        bpt.export_run(bpt.open_run(folder), out, program=program)
        files = ", ".join(str(path) for path in (out, program) if path)
        Console().print(f"written: {files}", highlight=False, soft_wrap=True)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="Folder for the page, its figures and its tables.")],
    data: Annotated[str | None, typer.Option(help="Where the dataset lies, if it moved.")] = None,
    confusion: Annotated[
        bool, typer.Option(help="Read the test images again, for confusion matrices.")
    ] = True,
    style: Annotated[
        str, typer.Option(help="Of the figures: paper, or slide with larger text and lines.")
    ] = "paper",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare runs: one HTML page with curves, prompts, confusions and the published numbers."""
    with reported_errors():
        import bpt
        import burst
        import reports

        burst.make_folder(out)
        runs = [bpt.open_run(folder) for folder in folders]
        with reports.figure_style(style):
            files = reports.save_bpt_report(
                runs, out, data=data, device=device, confusion=confusion
            )
        table = reports.compare(runs)
        if as_json:
            typer.echo(table.to_json(orient="records", indent=2))
        else:
            console = Console()
            console.print(reports.comparison_table(table))
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
