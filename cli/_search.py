"""`bpt search`: every method's learning rate and weight decay, then who is better."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli._common import (
    Json,
    Quiet,
    Steps,
    parse_numbers,
    parse_seeds,
    plain_console,
    reported_errors,
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
    model: Annotated[
        str | None, typer.Option(help="As of `bpt train`; mae_tiny, of benchmarks mae_vitb.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A checkpoint file, or `random`.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Where the dataset lies, unpacked or not; $BPT_DATA or ./data."),
    ] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of each class's training images.")
    ] = None,
    normalisation: Annotated[str | None, typer.Option(help="native or reference.")] = None,
    placement: Annotated[
        str | None, typer.Option(help="Of prompts: shallow (if not given), deep, last:4 ...")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Prompt tokens a block.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of bpt-bilinear.")] = None,
    spt_tokens: Annotated[str | None, typer.Option(help="What spt starts from.")] = None,
    whitening: Annotated[
        str | None,
        typer.Option(help="A file of `burst whiten`; else made from the training images."),
    ] = None,
    pooling: Annotated[
        str | None, typer.Option(help="default, prompts+patches, patches, prompts or token.")
    ] = None,
    after: Annotated[str | None, typer.Option(help="carry (if not given) or drop.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels a side that the backbone reads; its own.")
    ] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="Of training images: crop (if not given), flip or none.")
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(
            help="Of each training image, so that what no prompt changes is computed once."
        ),
    ] = None,
    prompt_scale: Annotated[
        str | None, typer.Option(help="Of whitened prompts: unit (if not given) or paper.")
    ] = None,
    null_gain: Annotated[
        float | None, typer.Option(help="Of whitened prompts: of directions below the floor.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(help="Of matrices made here: least share of the largest eigenvalue."),
    ] = None,
    bilinear_init: Annotated[
        str | None, typer.Option(help="Start of bpt-bilinear's right factor: xavier or whitening.")
    ] = None,
    bottleneck: Annotated[int | None, typer.Option(help="Of lora (its rank) and adapter.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of each label that goes to all classes.")
    ] = None,
    checkpoint_activations: Annotated[
        bool | None,
        typer.Option("--checkpoint-activations", help="Compute blocks again, for less memory."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of every training.")] = None,
    warmup_epochs: Annotated[
        int | None, typer.Option(help="With a rising learning rate; a tenth of the epochs.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Parts a step is cut into, for memory.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, sgd or lars.")] = None,
    head_weight_decay: Annotated[
        float | None,
        typer.Option(help="Of a prompted model's head; else in its ratio to the prompts' decay."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    ema_decay: Annotated[
        float | None, typer.Option(help="Evaluate and keep a moving average, such as 0.999.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    cache: Annotated[bool | None, typer.Option(help="Decode each image once.")] = None,
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
) -> None:
    """Search each method's rate and decay with equal budgets, and compare the best of each.

    The same command again goes on; several at once share the work.
    """
    log = plain_console(stderr=True)
    with reported_errors():
        import bpt
        import burst
        import reports

        base = bpt.search_base(
            dataset,
            model=model,
            weights=weights,
            data=data,
            train_fraction=train_fraction,
            normalisation=normalisation,
            placement=placement,
            num_prompts=num_prompts,
            rank=rank,
            spt_tokens=spt_tokens,
            whitening=whitening,
            pooling=pooling,
            after=after,
            image_size=image_size,
            augmentation=augmentation,
            views=views,
            prompt_scale=prompt_scale,
            null_gain=null_gain,
            floor=floor,
            bilinear_init=bilinear_init,
            bottleneck=bottleneck,
            label_smoothing=label_smoothing,
            checkpoint_activations=checkpoint_activations,
            epochs=epochs,
            warmup_epochs=warmup_epochs,
            batch_size=batch_size,
            accumulation=accumulation,
            optimizer=optimizer,
            head_weight_decay=head_weight_decay,
            precision=precision,
            ema_decay=ema_decay,
            workers=workers,
            cache=cache,
        )
        options = bpt.SearchOptions(
            lrs=parse_numbers(lrs, "--lrs"),
            weight_decays=parse_numbers(weight_decays, "--weight-decays"),
            seeds=parse_seeds(seeds),
            folds=folds,
            max_trials=max_trials,
        )
        where = out or bpt.search_folder(base)
        chosen = [str(burst.choose_device(device)) for device in devices.split(",")]

        def say(text: str) -> None:
            log.print(text, highlight=False, soft_wrap=True)

        with Steps(log, "steps", quiet=quiet or not log.is_terminal) as progress:
            record = bpt.search_methods(
                base,
                [name.strip() for name in methods.split(",")],
                where,
                options=options,
                devices=bpt.search_devices(chosen, processes),
                progress=progress,
                say=None if quiet else say,
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
