"""`bpt train` and `bpt study`: whatever a training can be told, and tables of trainings."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli._common import (
    Device,
    Json,
    Quiet,
    Steps,
    parse_seeds,
    parse_shrinkage,
    plain_console,
    reported_errors,
)


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
            help="vpt, gatevpt, spt, bpt-fwhiten, bpt-twhiten, bpt-dwhiten, bpt-bilinear; linear "
            "(a head on frozen features) or full (fine-tuning of all weights); lora, adapter or "
            "bitfit (of few)."
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
    bottleneck: Annotated[
        int | None,
        typer.Option(help="Of lora (its rank) and adapter: numbers between two matrices; 8."),
    ] = None,
    spt_tokens: Annotated[
        str | None,
        typer.Option(help="What spt starts from: random (if not given), mean, max or kmeans."),
    ] = None,
    bilinear_init: Annotated[
        str | None,
        typer.Option(
            help="Start of bpt-bilinear: xavier (if not given), balanced (both factors, at vpt's "
            "scale), or whitening (the right factor; with --whitening)."
        ),
    ] = None,
    whitening: Annotated[
        str | None,
        typer.Option(help="A file of `burst whiten`; else made from the training images."),
    ] = None,
    prompt_scale: Annotated[
        str | None,
        typer.Option(
            help="Of whitening matrices: unit RMS gain (if not given), or paper: W as it is."
        ),
    ] = None,
    null_gain: Annotated[
        float | None,
        typer.Option(
            help="Gain of directions below the floor, in units of the RMS gain of the others; 0."
        ),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            help="Of matrices from the training images: least eigenvalue kept, as a share of the "
            "largest; 0.001."
        ),
    ] = None,
    shrinkage: Annotated[
        str | None, typer.Option(help="The same: none (if not given), oas, or a number in 0..1.")
    ] = None,
    through_norm: Annotated[
        bool | None,
        typer.Option("--through-norm", help="The same: whiten what the block's first norm leaves."),
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
    gate_init: Annotated[
        float | None,
        typer.Option(help="gatevpt: its gates start at sigmoid(-this); 10, published for CUB: 5."),
    ] = None,
    prompt_dropout: Annotated[
        float | None,
        typer.Option(help="vpt, gatevpt: share of a prompt's values left out in training; 0."),
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
        float | None, typer.Option(help="Of prompts; without prompts, of all matrices.")
    ] = None,
    head_weight_decay: Annotated[
        float | None, typer.Option(help="Of the head; for prompts and linear.")
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="full: factor of the rate from a block to the one before.")
    ] = None,
    drop_path: Annotated[
        float | None, typer.Option(help="full: stochastic depth of the last block.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of the answer that goes to all classes; 0.")
    ] = None,
    mixup: Annotated[
        float | None, typer.Option(help="Mix pairs of images: alpha, such as 0.8. Not for linear.")
    ] = None,
    cutmix: Annotated[
        float | None,
        typer.Option(help="Paste a part of another image: alpha, such as 1. Not for linear."),
    ] = None,
    randaugment: Annotated[
        str | None,
        typer.Option(help="Operations on each crop: rand-m9-mstd0.5-inc1. Not for linear."),
    ] = None,
    head_norm: Annotated[
        str | None,
        typer.Option(help="linear: `batch`, as MAE's probe, in front of the head; or `none`."),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="coco: mask-rcnn (if not given) or cascade.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Pixels a side, where not the pretraining's; positions are resampled. coco: of "
            "the square that images are scaled into, such as 1024."
        ),
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
    checkpoint_activations: Annotated[
        bool | None,
        typer.Option(
            "--checkpoint-activations",
            help="Keep the inputs of blocks alone, and compute the rest again: less memory.",
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
    augmentation: Annotated[
        str | None,
        typer.Option(
            help="Of training images: crop (if not given; random, mirrored or not), flip (centre, "
            "mirrored or not) or none. Not for coco."
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Crops and flips drawn for each image, used in turn: placements such as last:4 "
            "then compute the blocks before the prompts once for each."
        ),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option(
            help="Decode each image once, and compute once what lies before all prompts, into "
            "$BPT_CACHE or ~/.cache/bpt. Not for coco."
        ),
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
    log = plain_console(stderr=True)
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
            bottleneck=bottleneck,
            spt_tokens=spt_tokens,
            bilinear_init=bilinear_init,
            whitening=whitening,
            prompt_scale=prompt_scale,
            null_gain=null_gain,
            floor=floor,
            shrinkage=parse_shrinkage(shrinkage) if shrinkage else None,
            through_norm=through_norm,
            pooling=pooling,
            after=after,
            gate_init=gate_init,
            prompt_dropout=prompt_dropout,
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
            label_smoothing=label_smoothing,
            mixup=mixup,
            cutmix=cutmix,
            randaugment=randaugment,
            head_norm=head_norm,
            detector=detector,
            image_size=image_size,
            schedule=schedule,
            channels=channels,
            smallest_scale=smallest_scale,
            largest_scale=largest_scale,
            sampling_ratio=sampling_ratio,
            checkpoint_activations=checkpoint_activations,
            eval_every=eval_every,
            precision=precision,
            compile=use_compile,
            ema_decay=ema_decay,
            protocol=protocol,
            seed=seed,
            workers=workers,
            augmentation=augmentation,
            views=views,
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
                console = plain_console()
                ended = reports.detection_result if "scores" in result else reports.result_table
                console.print(ended(result))
                console.print(f"written to {where}", highlight=False, soft_wrap=True)


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
    log = plain_console(stderr=True)
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

        def say(text: str) -> None:
            log.print(text, highlight=False, soft_wrap=True)

        with Steps(log, "steps", quiet=quiet or not log.is_terminal) as progress:
            results = bpt.run_study(
                reports.study_recipes(cells),
                where,
                seeds=chosen,
                devices=[str(burst.choose_device(device)) for device in devices.split(",")],
                search=search,
                progress=progress,
                say=None if quiet else say,
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
