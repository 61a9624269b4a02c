"""What the commands of `burst` read: options that they share, the model and its inputs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from burst import Backbone, ImageStream, TextStream

SAMPLE = "sample"

Model = Annotated[
    str,
    typer.Option(
        help="A name from `burst models`, or timm:NAME, hf:ORG/NAME, hf:FOLDER, torchvision:NAME, "
        "open_clip:NAME/PRETRAINED, python:package.module:factory."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(help="A checkpoint file, or `random`; nothing is downloaded then."),
]
Images = Annotated[
    str,
    typer.Option(help="A folder, a zip or plain tar of images, an image, or `sample` (embedded)."),
]
NumImages = Annotated[
    int,
    typer.Option(help="How many images, or sequences of a text, drawn at random by the seed."),
]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Pixels a side, where not the pretraining's; positions are resampled."),
]
Text = Annotated[
    Path | None,
    typer.Option(help="A text file, for a language model or the text tower of one for both."),
]
Blocks = Annotated[str, typer.Option(help="`all`, or blocks counted from 0, such as 0,3-5.")]
Convention = Annotated[
    str, typer.Option(help="`paper`: W_q W_k^T; `authors`: what their code computes.")
]
Tokens = Annotated[str, typer.Option(help="`all`, or `patch` to leave the class token etc. out.")]
Seed = Annotated[
    int, typer.Option(help="Of the choice of images or sequences, and of the sample's crops.")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that can't be read.")]


def open_backbone(
    model: str, weights: str | None, text: Path | None, *, device: str, image_size: int | None
) -> "Backbone":
    """The model that is named; of one with two towers that of text, where a text is given."""
    import burst

    return burst.load_backbone(
        model,
        weights,
        device=burst.choose_device(device),
        image_size=image_size,
        kind="text" if text else None,
    )


def open_inputs(
    backbone: "Backbone",
    images: str,
    text: Path | None,
    *,
    count: int,
    seed: int,
    skip_bad: bool,
) -> "ImageStream | TextStream":
    """What the model reads: the text where one is given, else images."""
    import burst

    if text is None:
        return burst.images_for(backbone, images, num_images=count, seed=seed, skip_bad=skip_bad)
    if images != SAMPLE:
        raise burst.BurstError(f"--images {images} and --text {text}: give one of them")
    return burst.text_for(backbone, text, num_sequences=count, seed=seed)
