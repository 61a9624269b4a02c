"""`bpt search`: every method's learning rate and weight decay, then who is better."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli import _training_options as options
from cli._common import (
    Json,
    Quiet,
    parse_devices,
    parse_names,
    parse_numbers,
    parse_seeds,
    plain_console,
    reported_errors,
    training_told,
)


def search(
    dataset: Annotated[str, typer.Argument(help="A name from `bpt datasets`, or folder:PATH.")],
    methods: Annotated[
        str, typer.Option(help="Any of `bpt train --method`, such as linear,vpt,bpt-fwhiten.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder; searches/DATASET-MODEL if not given.")
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(help="Rates to begin with; if not given, four around each method's own."),
    ] = None,
    weight_decays: Annotated[
        str | None,
        typer.Option(help="Decays to begin with; if not given, 0 and each method's own."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the final trainings.")] = "0,1,2",
    folds: Annotated[
        int,
        typer.Option(help="Of the cross-validation, where validation images are fewer than 500."),
    ] = 2,
    max_trials: Annotated[
        int | None,
        typer.Option(
            help="Of each method, also if its best is at an edge; half as many again as the grid."
        ),
    ] = None,
    devices: Annotated[
        str, typer.Option(help="One training at a time on each: auto, or cuda:0,cuda:1.")
    ] = "auto",
    processes: Annotated[
        int | None,
        typer.Option(
            help="On each device; 1, on a CPU one a thread, but no more than 4; they share them.",
            min=1,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    model: options.Model = None,
    weights: options.Weights = None,
    data: options.Data = None,
    train_fraction: options.TrainFraction = None,
    train_list: options.TrainList = None,
    normalisation: options.Normalisation = None,
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
        int | None, typer.Option(help="Of every training.", rich_help_panel=options.STEPS)
    ] = None,
    warmup_epochs: options.WarmupEpochs = None,
    batch_size: options.BatchSize = None,
    optimizer: options.Optimizer = None,
    min_lr: options.MinLr = None,
    head_weight_decay: Annotated[
        float | None,
        typer.Option(
            help="Of a prompted model's head; else in its ratio to the prompts' decay.",
            rich_help_panel=options.STEPS,
        ),
    ] = None,
    layer_decay: options.LayerDecay = None,
    drop_path: options.DropPath = None,
    label_smoothing: options.LabelSmoothing = None,
    ema_decay: options.EmaDecay = None,
    precision: options.Precision = None,
    accumulation: options.Accumulation = None,
    checkpoint_activations: options.CheckpointActivations = None,
    use_compile: options.Compile = False,
    cache: options.Cache = None,
    workers: options.Workers = None,
) -> None:
    """Search each method's rate and decay with equal budgets, and compare the best of each.

    The same command again goes on; several at once share the work.
    """
    typed = locals()
    with reported_errors():
        import bpt
        import reports

        fields = options.of_recipe(typed)
        base = bpt.search_base(dataset, **fields, compile=use_compile or None)
        asked = bpt.SearchOptions(
            lrs=parse_numbers(lrs, "--lrs"),
            weight_decays=parse_numbers(weight_decays, "--weight-decays"),
            seeds=parse_seeds(seeds),
            folds=folds,
            max_trials=max_trials,
        )
        where = out or bpt.search_folder(base)

        with training_told(quiet=quiet) as told:
            record = bpt.search_methods(
                base,
                parse_names(methods),
                where,
                options=asked,
                devices=bpt.search_devices(parse_devices(devices), processes),
                **told,
            )
        page = reports.save_search_report(where)[0]
        if as_json:
            typer.echo(json.dumps(record, indent=2))
        elif not quiet:
            console = plain_console()
            console.print(reports.search_table(record))
            for line in record["sentences"]:
                console.print(line, highlight=False, soft_wrap=True)
            console.print(f"written to {where}; the page: {page}", highlight=False, soft_wrap=True)
