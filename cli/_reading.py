"""What the commands of `burst` read: options that they share, the model and its inputs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cli._common import said_on_stderr
from cli._panels import BACKBONE, DATA, MEASURED, OUTPUT, option

if TYPE_CHECKING:
    from burst import Backbone, ImageStream, TextStream

SAMPLE = "sample"

Model = Annotated[
    str,
    option(
        "A name from `burst models`, or timm:NAME, hf-hub:ORG/NAME (timm's), hf:ORG/NAME, "
        "hf:FOLDER, torchvision:NAME, open_clip:NAME/PRETRAINED, python:package.module:factory.",
        BACKBONE,
    ),
]
Weights = Annotated[
    str | None,
    option("A checkpoint file, or `random`; nothing is downloaded then.", BACKBONE),
]
ImageSize = Annotated[
    int | None,
    option("Pixels a side, where not the pretraining's; positions are resampled.", BACKBONE),
]
Images = Annotated[
    str,
    option(
        "A folder, a zip or plain tar of images, an image, `sample` (embedded), or a name of "
        "`bpt datasets`: its training images.",
        DATA,
    ),
]
Text = Annotated[
    Path | None,
    option("A text file, for a language model or the text tower of one for both.", DATA),
]
NumImages = Annotated[
    int,
    option("How many images, or sequences of a text, drawn at random by the seed.", DATA),
]
Seed = Annotated[
    int, option("Of the choice of images or sequences, and of the sample's crops.", DATA)
]
SkipBad = Annotated[bool, option("Leave out images that can't be read.", DATA, "--skip-bad")]
Blocks = Annotated[str, option("`all`, or blocks counted from 0, such as 0,3-5.", MEASURED)]
PerHead = Annotated[bool, option("Measure each head too.", MEASURED, "--per-head")]
Convention = Annotated[
    str, option("`paper`: W_q W_k^T; `authors`: what their code computes.", MEASURED)
]
Tokens = Annotated[str, option("`all`, or `patch` to leave the class token etc. out.", MEASURED)]
Style = Annotated[
    str, option("Of the figures: paper, or slide with larger text and lines.", OUTPUT)
]


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
    quiet: bool,
) -> "ImageStream | TextStream":
    """What the model reads: the text where one is given, else images."""
    import burst

    if text is not None:
        if images != SAMPLE:
            raise burst.BurstError(f"--images {images} and --text {text}: give one of them")
        return burst.text_for(backbone, text, num_sequences=count, seed=seed)
    if not _is_dataset(images):
        return burst.images_for(backbone, images, num_images=count, seed=seed, skip_bad=skip_bad)
    import bpt

    return bpt.dataset_images(
        backbone,
        images,
        num_images=count,
        seed=seed,
        skip_bad=skip_bad,
        say=said_on_stderr(quiet=quiet),
    )


def _is_dataset(images: str) -> bool:
    """Whether it is a dataset's name, and of no file or folder here.

    Raises:
        UnknownName: it can be no path either.
    """
    from burst.errors import UnknownName
    from burst.images import path_exists

    if images == SAMPLE or path_exists(Path(images)):
        return False
    import bpt

    known = [info.name for info in bpt.known_datasets()]
    if images.partition(":")[0] in known:
        return True
    if Path(images).name == images and not Path(images).suffix:
        hint = "(nor is there a file or folder of that name)"
        raise UnknownName("image source", images, [SAMPLE, *known], hint)
    return False
