"""`bpt search`: every method's learning rate and weight decay, then who is better."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli import _training_options as options
from cli._common import (
    Devices,
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
from cli._panels import MACHINE, OUTPUT, PROMPTS, STEPS, TRIALS, option


def search(
    dataset: Annotated[str, typer.Argument(help="A name from `bpt datasets`, or folder:PATH.")],
    methods: Annotated[
        str, option("Any of `bpt train --method`, such as linear,vpt,bpt-fwhiten.", PROMPTS)
    ],
    lrs: Annotated[
        str | None,
        option(
            "Learning rates to begin with, such as 0.01,0.04,0.16; if not given, four around each "
            "method's own.",
            TRIALS,
        ),
    ] = None,
    weight_decays: Annotated[
        str | None,
        option(
            "Weight decays to begin with, such as 0,0.005; if not given, 0 and each method's own.",
            TRIALS,
        ),
    ] = None,
    seeds: Annotated[str, option("Of the final trainings.", TRIALS)] = "0,1,2",
    folds: Annotated[
        int,
        option("Of the cross-validation, where validation images are fewer than 500.", TRIALS),
    ] = 2,
    max_trials: Annotated[
        int | None,
        option(
            "Of each method, those that its grid grows by among them; 1.5 times the grid.",
            TRIALS,
        ),
    ] = None,
    halving: Annotated[
        bool,
        option(
            "Compare trials of each rate after a quarter and a half of a training too, where the "
            "better half goes on: saves up to a quarter, and loses what pays late.",
            TRIALS,
            "--halving",
        ),
    ] = False,
    dry_run: Annotated[
        bool, option("List what would be trained, with estimated cost.", TRIALS, "--dry-run")
    ] = False,
    data: options.Data = None,
    train_fraction: options.TrainFraction = None,
    train_list: options.TrainList = None,
    augmentation: options.Augmentation = None,
    views: options.Views = None,
    randaugment: options.Randaugment = None,
    random_erasing: options.RandomErasing = None,
    mixup: options.Mixup = None,
    cutmix: options.Cutmix = None,
    model: options.Model = None,
    weights: options.Weights = None,
    image_size: options.ImageSize = None,
    normalisation: options.Normalisation = None,
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
        option("Of prompts and fine-tuning; a linear probe trains at least 100.", STEPS),
    ] = None,
    warmup_epochs: options.WarmupEpochs = None,
    batch_size: options.BatchSize = None,
    optimizer: options.Optimizer = None,
    min_lr: options.MinLr = None,
    head_weight_decay: Annotated[
        float | None,
        option("Of a prompted model's head; else in its ratio to the prompts' decay.", STEPS),
    ] = None,
    layer_decay: options.LayerDecay = None,
    drop_path: options.DropPath = None,
    label_smoothing: options.LabelSmoothing = None,
    ema_decay: options.EmaDecay = None,
    devices: Devices = "auto",
    processes: Annotated[
        int | None,
        option(
            "On each device; if not given, 1 on a GPU, and on a CPU one a thread, at most 4, which "
            "share the threads.",
            MACHINE,
            min=1,
        ),
    ] = None,
    precision: options.Precision = None,
    accumulation: options.Accumulation = None,
    checkpoint_activations: options.CheckpointActivations = None,
    use_compile: options.Compile = False,
    cache: options.Cache = None,
    workers: options.Workers = None,
    out: Annotated[
        Path | None, option("Folder; searches/DATASET-MODEL if not given.", OUTPUT)
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search each method's rate and decay with equal budgets, and compare the best of each.

    Digits have smaller defaults than those below, so that they take minutes: --dry-run says which.
    The same command again goes on; several at once share the work.
    """
    typed = locals()
    with reported_errors():
        import bpt
        import reports

        base = bpt.search_base(**options.of_recipe(typed))
        asked = bpt.SearchOptions(
            lrs=parse_numbers(lrs, "--lrs"),
            weight_decays=parse_numbers(weight_decays, "--weight-decays"),
            seeds=parse_seeds(seeds),
            folds=folds,
            max_trials=max_trials,
            halving=halving,
        )
        where = out or bpt.search_folder(base)
        names, shared = parse_names(methods), parse_devices(devices, processes)

        with training_told(quiet=quiet) as told:
            if dry_run:
                costs = bpt.search_costs(base, names, where, options=asked, say=told["say"])
                if as_json:
                    plan = {name: asdict(cost) for name, cost in costs.items()}
                    typer.echo(json.dumps(plan, indent=2))
                else:
                    plain_console().print(reports.search_plan_table(costs))
                return
            record = bpt.search_methods(
                base,
                names,
                where,
                options=asked,
                devices=bpt.search_devices(shared, processes),
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
