"""`bpt train`: whatever a training can be told."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import _training_options as options
from cli._common import (
    Device,
    Json,
    Quiet,
    parse_seeds,
    plain_console,
    reported_errors,
    training_told,
)


def train(
    dataset: Annotated[
        str,
        typer.Argument(help="A name from `bpt datasets`, or folder:PATH, coco:PATH, vtab:TASK."),
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
    typed = locals()
    with reported_errors():
        import bpt
        import burst
        import reports

        detection = bpt.dataset_info(dataset).task == "detection"
        recipe_for = bpt.detection_recipe_for if detection else bpt.recipe_for
        recipe = recipe_for(
            dataset,
            **options.of_recipe(typed),
            method=method,
            lr=lr,
            weight_decay=weight_decay,
            detector=detector,
            schedule=schedule,
            channels=channels,
            smallest_scale=smallest_scale,
            largest_scale=largest_scale,
            sampling_ratio=sampling_ratio,
            eval_every=eval_every,
            compile=use_compile,
            protocol=protocol,
            seed=seed,
        )
        several = parse_seeds(seeds) if seeds else None
        where = out or bpt.default_folder(recipe, several=several is not None)

        with training_told(quiet=quiet) as told:
            shared: dict[str, Any] = {"device": device, "resume": resume, **told}
            if several is None:
                result = bpt.train(recipe, where, **shared)
            else:
                result = bpt.train_seeds(recipe, several, where, **shared)
        if burst.is_first_process():
            if as_json:
                typer.echo(json.dumps(result, indent=2))
            elif not quiet:
                console = plain_console()
                ended = reports.detection_result if "scores" in result else reports.result_table
                console.print(ended(result))
                console.print(f"written to {where}", highlight=False, soft_wrap=True)
