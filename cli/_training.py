"""`bpt train`: whatever a training can be told."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli import _training_options as options
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
    method: Annotated[
        str,
        typer.Option(
            help="vpt, gatevpt, spt, bpt-fwhiten, bpt-twhiten, bpt-dwhiten, bpt-bilinear; linear "
            "(a head on frozen features) or full (fine-tuning of all weights); lora, adapter or "
            "bitfit (of few)."
        ),
    ] = "bpt-bilinear",
    out: Annotated[
        Path | None, typer.Option(help="Run folder; runs/DATASET-MODEL-METHOD-... if not given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, if there is one.")
    ] = False,
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
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
    model: options.Model = None,
    weights: options.Weights = None,
    data: options.Data = None,
    train_fraction: options.TrainFraction = None,
    train_list: options.TrainList = None,
    normalisation: options.Normalisation = "native",
    image_size: options.ImageSize = None,
    augmentation: options.Augmentation = None,
    views: options.Views = None,
    randaugment: options.Randaugment = None,
    mixup: options.Mixup = None,
    cutmix: options.Cutmix = None,
    placement: options.Placement = None,
    num_prompts: options.NumPrompts = None,
    rank: options.Rank = None,
    spt_tokens: options.SptTokens = None,
    bilinear_init: options.BilinearInit = None,
    whitening: options.Whitening = None,
    prompt_scale: options.PromptScale = None,
    null_gain: options.NullGain = None,
    floor: options.Floor = None,
    shrinkage: options.Shrinkage = None,
    through_norm: options.ThroughNorm = None,
    pooling: options.Pooling = None,
    after: options.After = None,
    gate_init: options.GateInit = None,
    prompt_dropout: options.PromptDropout = None,
    bottleneck: options.Bottleneck = None,
    head_norm: options.HeadNorm = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the images; 100, for digits 10. For coco: --schedule.",
            rich_help_panel=options.STEPS,
        ),
    ] = None,
    warmup_epochs: options.WarmupEpochs = None,
    batch_size: options.BatchSize = None,
    optimizer: options.Optimizer = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate; this and what stands below as published, if it was.",
            rich_help_panel=options.STEPS,
        ),
    ] = None,
    min_lr: options.MinLr = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="Of prompts; without prompts, of all matrices.", rich_help_panel=options.STEPS
        ),
    ] = None,
    head_weight_decay: Annotated[
        float | None,
        typer.Option(help="Of the head; for prompts and linear.", rich_help_panel=options.STEPS),
    ] = None,
    layer_decay: options.LayerDecay = None,
    drop_path: options.DropPath = None,
    label_smoothing: options.LabelSmoothing = None,
    ema_decay: options.EmaDecay = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="coco: mask-rcnn (if not given) or cascade.", rich_help_panel=options.COCO
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="coco: 1x, 3x (12 and 37 epochs), or a number of epochs.",
            rich_help_panel=options.COCO,
        ),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help="coco: of pyramid and heads; 256.", rich_help_panel=options.COCO),
    ] = None,
    smallest_scale: Annotated[
        float | None,
        typer.Option(
            help="coco: of images in training, where 1 fills the square; 0.1.",
            rich_help_panel=options.COCO,
        ),
    ] = None,
    largest_scale: Annotated[
        float | None, typer.Option(help="coco: the same; 2.", rich_help_panel=options.COCO)
    ] = None,
    sampling_ratio: Annotated[
        int | None,
        typer.Option(
            help="coco: points a bin that regions are read at; 0 (if not given) adapts.",
            rich_help_panel=options.COCO,
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            help="coco: epochs between scores on the way; 0: at the end.",
            rich_help_panel=options.COCO,
        ),
    ] = None,
    precision: options.Precision = "float32",
    accumulation: options.Accumulation = 1,
    checkpoint_activations: options.CheckpointActivations = None,
    use_compile: options.Compile = False,
    cache: options.Cache = None,
    workers: options.Workers = 0,
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
