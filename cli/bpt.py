"""The command `bpt`: parse, call the library, print.

The libraries are imported inside the commands: PyTorch takes seconds, and `--help` must not.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

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
            opener = bpt.open_coco if info.task == "detection" else bpt.open_dataset
            opened = opener(check, data, say=log.print)
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
        str, typer.Argument(help="A name from `bpt datasets`, or folder:PATH, or coco:PATH.")
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            help="A name from `burst models`, or any timm ViT as timm:NAME; mae_tiny for digits "
            "and one's own images, else mae_vitb."
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
        str | None,
        typer.Option(help="default, prompts+patches, patches, prompts or token. Not for coco."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            help="Prompt tokens behind the last prompted block: carry (if not given) or drop."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Passes over the images; 100, for digits 10. For coco: --schedule."),
    ] = None,
    warmup_epochs: Annotated[
        int | None,
        typer.Option(help="With a rising learning rate; a tenth of the epochs. Not for coco."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step, over all processes; 32, for coco 16.")
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
    detector: Annotated[
        str | None, typer.Option(help="coco: mask-rcnn (if not given) or cascade.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="coco: pixels of the square that images are scaled into, such as 1024."),
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="coco: 1x, 3x (12 and 37 epochs), or a number of epochs.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="coco: of pyramid and heads; 256.")] = None,
    smallest_scale: Annotated[
        float | None,
        typer.Option(help="coco: of images in training, where 1 fills the square; 0.1."),
    ] = None,
    largest_scale: Annotated[float | None, typer.Option(help="coco: the same; 2.")] = None,
    sampling_ratio: Annotated[
        int | None,
        typer.Option(help="coco: points a bin that regions are read at; 0 (if not given) adapts."),
    ] = None,
    recompute: Annotated[
        bool | None,
        typer.Option(
            "--recompute", help="coco: compute blocks again on the way back, for less memory."
        ),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="coco: epochs between scores on the way; 0: at the end.")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    use_compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    ema_decay: Annotated[
        float | None, typer.Option(help="Evaluate and keep a moving average, such as 0.999.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="`standard` (if not given): epoch chosen on val, test read once; `authors`: "
            "trained on train + val, last epoch and best on test. Not for coco."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of start, order and augmentation.")] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several, such as 0,1,2: mean and spread.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read images.")] = 0,
    cache: Annotated[
        bool | None,
        typer.Option(help="Decode each image once, into $BPT_CACHE or ~/.cache/bpt. Not for coco."),
    ] = None,
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
    """Train prompts and a head on a frozen backbone, and say how good they are.

    On coco, or one's own images in its format, the head is a detector: boxes and masks.
    """
    log = Console(stderr=True)
    with reported_errors():
        import bpt
        import burst
        import reports

        detection = bpt.dataset_info(dataset).task == "detection"
        recipe_for = bpt.detection_recipe_for if detection else bpt.recipe_for
        recipe = recipe_for(
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
            detector=detector,
            image_size=image_size,
            schedule=schedule,
            channels=channels,
            smallest_scale=smallest_scale,
            largest_scale=largest_scale,
            sampling_ratio=sampling_ratio,
            recompute=recompute,
            eval_every=eval_every,
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
                ended = reports.detection_result if "scores" in result else reports.result_table
                console.print(ended(result))
                console.print(f"written to {where}", highlight=False, soft_wrap=True)


@app.command()
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
    image_size: Annotated[int | None, typer.Option(help="Of detectors; 1024.")] = None,
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
    split: Annotated[
        str | None,
        typer.Option(help="train, val or test; of a detector train or val (the default)."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Where the dataset lies, if it moved.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a run on a split, class by class; of a detector, average precision of what it finds."""
    with reported_errors():
        import bpt
        import burst
        import reports

        with burst.process_group() as (rank, _):
            run = bpt.open_run(folder)
            if isinstance(run, bpt.DetectionRun):
                scores, path = bpt.evaluate_detector(run, split or "val", data=data, device=device)
                record: dict[str, Any] = scores.values
                tables = [
                    reports.detection_table(scores.values),
                    reports.detection_classes_table(scores.per_class),
                ]
            else:
                path = None
                found = bpt.evaluate_run(run, split or "test", data=data, device=device)
                record, tables = asdict(found), [reports.evaluation_table(found)]
        if rank > 0:
            return
        if as_json:
            typer.echo(json.dumps(reports.plain(record), indent=2))
            return
        console = Console()
        for table in tables:
            console.print(table)
        if path:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)


@app.command()
def predict(
    folder: Run,
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or archives.")],
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 5,
    threshold: Annotated[
        float, typer.Option(help="Of a detector: least score of an object that is shown.")
    ] = 0.5,
    out: Annotated[
        Path, typer.Option(help="Of a detector: folder for the pictures that it draws.")
    ] = Path("predictions"),
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Name the most likely classes of images; of a detector, draw the objects that it finds."""
    with reported_errors():
        import bpt
        import reports

        run = bpt.open_run(folder)
        if isinstance(run, bpt.DetectionRun):
            found = bpt.predict_objects(run, images, threshold=threshold, device=device)
            answers = reports.save_predictions(found, out)
            table = reports.objects_table(answers)
        else:
            answers = bpt.predict(run, images, top=top, device=device)
            table = reports.predictions_table(answers)
        if as_json:
            typer.echo(json.dumps(answers, indent=2))
        else:
            Console().print(table)


@app.command()
def export(
    folder: Run,
    out: Annotated[Path, typer.Option(help="A .safetensors file: plain prompt tokens and head.")],
    program: Annotated[
        Path | None,
        typer.Option(
            help="A .pt2 file: the whole model, as torch.export traces it. Not of a detector."
        ),
    ] = None,
) -> None:
    """Write a run's trained model for use elsewhere, every prompt as plain tokens."""
    with reported_errors():
        import bpt
        import burst

        run = bpt.open_run(folder)
        if not isinstance(run, bpt.DetectionRun):
            bpt.export_run(run, out, program=program)
        elif program is None:
            bpt.export_detector(run, out)
        else:
            raise burst.BurstError(f"{folder} is a detector; --program is for classifiers")
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
    """Compare runs: one HTML page with curves, prompts, confusions and the published numbers.

    Of detectors: scores, classes, who finds what, pictures side by side.
    """
    with reported_errors():
        import bpt
        import burst
        import reports

        burst.make_folder(out)
        runs = [bpt.open_run(folder) for folder in folders]
        detectors = [run for run in runs if isinstance(run, bpt.DetectionRun)]
        classifiers = [run for run in runs if not isinstance(run, bpt.DetectionRun)]
        if detectors and classifiers:
            raise burst.BurstError(
                f"{detectors[0].folder} is a detector and {classifiers[0].folder} a classifier; "
                "report them one kind at a time"
            )
        with reports.figure_style(style):
            if detectors:
                files, table = reports.report_detectors(detectors, out, data=data)
            else:
                files = reports.save_bpt_report(
                    classifiers, out, data=data, device=device, confusion=confusion
                )
                table = reports.compare(classifiers)
        if as_json:
            typer.echo(table.to_json(orient="records", indent=2))
        else:
            console = Console()
            shown = reports.detectors_table if detectors else reports.comparison_table
            console.print(shown(table))
            console.print(f"written: {files[0]}", highlight=False, soft_wrap=True)


def main() -> NoReturn:
    """Entry point of the console script."""
    run(app)
