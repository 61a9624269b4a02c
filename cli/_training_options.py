"""Options of a training that `bpt train` and `bpt search` share.

Each is the field of `bpt.Recipe` with its name; None: it was not given.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from cli._common import parse_shrinkage
from cli._panels import BACKBONE, DATA, MACHINE, PROMPTS, STEPS, option

Model = Annotated[
    str | None,
    option(
        "A name from `burst models`, or a plain ViT of timm as timm:NAME, hf-hub:ORG/NAME or "
        "python:MODULE:FUNCTION; mae_tiny for digits and one's own images, else mae_vitb.",
        BACKBONE,
    ),
]
Weights = Annotated[str | None, option("A checkpoint file, or `random`.", BACKBONE)]
Data = Annotated[
    str | None, option("Where the dataset lies, unpacked or not; $BPT_DATA or ./data.", DATA)
]
TrainFraction = Annotated[
    float | None, option("Share of each class's training images, such as 0.1.", DATA)
]
TrainList = Annotated[str | None, option("imagenet: a file that names the training images.", DATA)]
Normalisation = Annotated[
    str | None,
    option(
        "native: as the backbone was pretrained; reference: ImageNet's for all, as the published "
        "numbers.",
        BACKBONE,
    ),
]
ImageSize = Annotated[
    int | None,
    option(
        "Pixels a side, where not the pretraining's; positions are resampled. coco: of the square "
        "that images are scaled into, such as 1024.",
        BACKBONE,
    ),
]
Augmentation = Annotated[
    str | None,
    option(
        "Of training images: crop (if not given; random, mirrored or not), flip (centre, mirrored "
        "or not) or none; for linear crop is none. Not for coco.",
        DATA,
    ),
]
Views = Annotated[
    int | None,
    option(
        "Crops and flips drawn for each image, used in turn: placements such as last:4 then "
        "compute the blocks before the prompts once for each.",
        DATA,
    ),
]
Randaugment = Annotated[
    str | None, option("Operations on each crop: rand-m9-mstd0.5-inc1. Not for linear.", DATA)
]
RandomErasing = Annotated[
    float | None,
    option("Share of crops in which a rectangle is erased, such as 0.25. Not for linear.", DATA),
]
Mixup = Annotated[
    float | None, option("Mix pairs of images: alpha, such as 0.8. Not for linear.", DATA)
]
Cutmix = Annotated[
    float | None,
    option("Paste a part of another image: alpha, such as 1. Not for linear.", DATA),
]

Placement = Annotated[
    str | None,
    option(
        "shallow (if not given), deep, last:4, first:4, 3+1 (first 3 and last 1), interval:4.",
        PROMPTS,
    ),
]
NumPrompts = Annotated[
    int | None,
    option("In each prompted block; 100, or 50 in several on the paper's benchmarks.", PROMPTS),
]
Rank = Annotated[int | None, option("Of bpt-bilinear: columns of its two factors; 75.", PROMPTS)]
SptTokens = Annotated[
    str | None,
    option("What spt starts from: random (if not given), mean, max or kmeans.", PROMPTS),
]
BilinearInit = Annotated[
    str | None,
    option(
        "Start of bpt-bilinear: xavier (if not given), balanced (both factors, at vpt's scale), or "
        "whitening (the right factor; if not given with --whitening).",
        PROMPTS,
    ),
]
Whitening = Annotated[
    str | None, option("A file of `burst whiten`; else made from the training images.", PROMPTS)
]
PromptScale = Annotated[
    str | None,
    option("Of whitening matrices: unit RMS gain (if not given), or paper: W as it is.", PROMPTS),
]
NullGain = Annotated[
    float | None,
    option(
        "Gain of directions below the floor, in units of the RMS gain of the others; 1.", PROMPTS
    ),
]
Floor = Annotated[
    float | None,
    option(
        "Of matrices from the training images: least eigenvalue kept, as a share of the largest; "
        "0.001.",
        PROMPTS,
    ),
]
Shrinkage = Annotated[
    str | None, option("The same: none (if not given), oas, or a number in 0..1.", PROMPTS)
]
ThroughNorm = Annotated[
    bool | None,
    option("The same: whiten what the block's first norm leaves.", PROMPTS, "--through-norm"),
]
Pooling = Annotated[
    str | None,
    option("default, prompts+patches, patches, prompts or token. Not for coco.", PROMPTS),
]
After = Annotated[
    str | None,
    option("Prompt tokens behind the last prompted block: carry (if not given) or drop.", PROMPTS),
]
GateInit = Annotated[
    float | None,
    option("gatevpt: its gates start at sigmoid(-this); 10, published for CUB: 5.", PROMPTS),
]
PromptDropout = Annotated[
    float | None,
    option("vpt, gatevpt: share of a prompt's values left out in training; 0.", PROMPTS),
]
Bottleneck = Annotated[
    int | None,
    option("Of lora (its rank) and adapter: numbers between two matrices; 8.", PROMPTS),
]
HeadNorm = Annotated[
    str | None,
    option("linear: `batch`, as MAE's probe, in front of the head; or `none`.", PROMPTS),
]

WarmupEpochs = Annotated[
    int | None,
    option("With a rising learning rate; a tenth of the epochs. Not for coco.", STEPS),
]
BatchSize = Annotated[
    int | None, option("Images a step, over all processes; 32, for coco 16.", STEPS)
]
Optimizer = Annotated[str | None, option("adamw, sgd or lars.", STEPS)]
MinLr = Annotated[float | None, option("Learning rate at the end of the cosine; 1e-8.", STEPS)]
LayerDecay = Annotated[
    float | None, option("full: factor of the rate from a block to the one before.", STEPS)
]
DropPath = Annotated[float | None, option("full: stochastic depth of the last block.", STEPS)]
LabelSmoothing = Annotated[
    float | None, option("Share of the answer that goes to all classes; 0.", STEPS)
]
EmaDecay = Annotated[
    float | None, option("Evaluate and keep a moving average, such as 0.999.", STEPS)
]

Cache = Annotated[
    bool | None,
    option(
        "Decode each image once, and compute once what lies before all prompts, into $BPT_CACHE or "
        "~/.cache/bpt. Not for coco.",
        MACHINE,
    ),
]
Precision = Annotated[str | None, option("float32, bfloat16 or float16.", MACHINE)]
Accumulation = Annotated[int | None, option("Parts a step is cut into, for memory.", MACHINE)]
CheckpointActivations = Annotated[
    bool | None,
    option(
        "Keep the inputs of blocks alone, and compute the rest again: less memory.",
        MACHINE,
        "--checkpoint-activations",
    ),
]
Compile = Annotated[bool, option("Use torch.compile.", MACHINE, "--compile")]
Workers = Annotated[int | None, option("Processes that read images.", MACHINE)]


def of_recipe(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a recipe out of a command's parameters, as far as it has them.

    A parameter is one if a recipe has a field of its name.
    """
    import bpt

    known = {one.name for kind in (bpt.Recipe, bpt.DetectionRecipe) for one in fields(kind)}
    found = {name: value for name, value in typed.items() if name in known}
    if shrinkage := found.get("shrinkage"):
        found["shrinkage"] = parse_shrinkage(shrinkage)
    return found | {"compile": typed.get("use_compile") or None}
