"""Every cell of every study against the published settings, typed anew from their sources.

Columns are hyper-parameters. A value with "?" was not published: it is the nearest that was, or one
of a grid, and the recipe says so. "-" is an option that the method does not read. "all" are the
five fine-grained datasets, "..." every number that the table varies. Sections are those of our
protocol facts; SUP is the paper's supplement.
"""

import pytest
import torch

import bpt
import reports
from burst import find_backbone

FGVC = ("cub", "nabirds", "flowers", "dogs", "cars")
NOT_PUBLISHED = ("none was published", "one of a grid")
PROMPTED = {"placement", "num_prompts", "weight_decay", "head_weight_decay"}
OPTIONS = {  # what a method reads, besides what all do
    "linear": {"head_weight_decay"},
    "full": {"weight_decay", "layer_decay", "drop_path"}
    | {"label_smoothing", "mixup", "cutmix", "randaugment", "random_erasing"},  # of ImageNet
    "bpt-bilinear": PROMPTED | {"rank"},
    "vpt": PROMPTED | {"prompt_dropout"},
    "gatevpt": PROMPTED | {"gate_init", "prompt_dropout"},
    "bpt-fwhiten": PROMPTED | {"prompt_scale"},
    "bpt-twhiten": PROMPTED | {"prompt_scale"},
}
OF_ALL = {"dataset", "model", "method", "train_fraction", "batch_size", "optimizer"}
OF_ALL |= {"epochs", "warmup_epochs", "lr", "min_lr"}

# Section 3. Full and linear: KMnP/vpt, whose grids give no single learning rate.
# VPT: the same, with n = 100 on CUB by the poster's count (section 0); 64 images a step for deep
# prompts of 100. SPT: README of Self-Prompt-Tuning, n = 20 deep and n = 100 shallow, and the loop
# of BPT; its shallow rates were not published. BPT: the scripts' table "wd / wd_head / lr"; deep in
# the last four blocks (section 5) with n = c = 50 (section 0: 7.54 times the numbers).
HEAD = """
method      dataset placement m    r  batch epochs warmup lr      wd     head  optimizer"""
VPT_ROWS = """
vpt-shallow nabirds shallow   100? -  128   100    10     1.25?   1e-3?  1e-3? sgd
vpt-shallow flowers shallow   100? -  128   100    10     1.25?   1e-3?  1e-3? sgd
vpt-shallow dogs    shallow   100? -  128   100    10     1.25?   1e-3?  1e-3? sgd
vpt-shallow cars    shallow   100? -  128   100    10     1.25?   1e-3?  1e-3? sgd
vpt-deep    all     deep      100? -  64    100    10     0.625?  1e-3?  1e-3? sgd
full        all     -         -    -  384   100?   5      7.5e-4? 1e-2   -     adamw"""
# The code of GateVPT, run.sh and configs/base-prompt.yaml: of CUB with MAE, and of nothing else.
GATEVPT = """
gatevpt     nabirds shallow   100? -  64?   100?   10?    0.1?    0?     0?    sgd?
gatevpt     flowers shallow   100? -  64?   100?   10?    0.1?    0?     0?    sgd?
gatevpt     dogs    shallow   100? -  64?   100?   10?    0.1?    0?     0?    sgd?
gatevpt     cars    shallow   100? -  64?   100?   10?    0.1?    0?     0?    sgd?"""

FGVC_MAE = f"""{HEAD}{VPT_ROWS}{GATEVPT}
gatevpt     cub     shallow   100  -  64    100    10     0.1     0      0     sgd
vpt-shallow cub     shallow   100  -  128   100    10     1.25?   1e-3?  1e-3? sgd
spt-shallow cub     shallow   100  -  32    100    10     5e-2?   5e-3?  0.5?  adamw
spt-shallow nabirds shallow   100  -  32    100    10     5e-2?   5e-3?  0.1?  adamw
spt-shallow flowers shallow   100  -  32    100    10     1e-1?   5e-3?  1.0?  adamw
spt-shallow dogs    shallow   100  -  32    100    10     5e-2?   5e-3?  0.1?  adamw
spt-shallow cars    shallow   100  -  32    100    10     5e-2?   2e-3?  0.1?  adamw
bpt-shallow cub     shallow   100  75 32    100    10     5e-2    5e-3   0.5   adamw
bpt-shallow nabirds shallow   100  75 32    100    10     5e-2    5e-3   0.1   adamw
bpt-shallow flowers shallow   100  75 32    100    10     1e-1    5e-3   1.0   adamw
bpt-shallow dogs    shallow   100  75 32    100    10     5e-2    5e-3   0.1   adamw
bpt-shallow cars    shallow   100  75 32    100    10     5e-2    2e-3   0.1   adamw
spt-deep    cub     deep      20   -  32    100    10     5e-2    1e-2   0.5   adamw
spt-deep    nabirds deep      20?  -  32    100    10     5e-2?   1e-2?  0.5?  adamw
spt-deep    flowers deep      20?  -  32    100    10     5e-2?   1e-2?  0.5?  adamw
spt-deep    dogs    deep      20?  -  32    100    10     5e-2?   1e-2?  0.5?  adamw
spt-deep    cars    deep      20?  -  32    100    10     5e-2?   1e-2?  0.5?  adamw
bpt-deep    cub     last:4    50   50 32    100    10     5e-2    5e-3   0.5   adamw
bpt-deep    nabirds last:4    50   50 32    100    10     5e-2    5e-3   0.3   adamw
bpt-deep    flowers last:4    50   50 32    100    10     5e-2?   5e-3?  0.5?  adamw
bpt-deep    dogs    last:4    50   50 32    100    10     5e-2    5e-3   0.1   adamw
bpt-deep    cars    last:4    50   50 32    100    10     5e-2    5e-3   0.1   adamw
"""

FGVC_MOCO = f"""{HEAD}{VPT_ROWS}{GATEVPT}
gatevpt     cub     shallow   100? -  64?   100?   10?    0.1?    0?     0?    sgd?
vpt-shallow cub     shallow   100? -  128   100    10     1.25?   1e-3?  1e-3? sgd
spt-shallow cub     shallow   100  -  32    100    10     5e-2?   5e-3?  0.1?  adamw
spt-shallow nabirds shallow   100  -  32    100    10     5e-2?   1e-3?  0.05? adamw
spt-shallow flowers shallow   100  -  32    100    10     5e-2?   1e-3?  0.05? adamw
spt-shallow dogs    shallow   100  -  32    100    10     5e-2?   2e-3?  0.1?  adamw
spt-shallow cars    shallow   100  -  32    100    10     5e-2?   5e-3?  0.1?  adamw
bpt-shallow cub     shallow   100  75 32    100    10     5e-2    5e-3   0.1   adamw
bpt-shallow nabirds shallow   100  75 32    100    10     5e-2    1e-3   0.05  adamw
bpt-shallow flowers shallow   100  75 32    100    10     5e-2    1e-3   0.05  adamw
bpt-shallow dogs    shallow   100  75 32    100    10     5e-2    2e-3   0.1   adamw
bpt-shallow cars    shallow   100  75 32    100    10     5e-2?   5e-3?  0.1?  adamw
spt-deep    dogs    deep      20   -  32    100    10     1e-3    1e-2   3.0   adamw
spt-deep    cub     deep      20?  -  32    100    10     1e-3?   1e-2?  3.0?  adamw
spt-deep    nabirds deep      20?  -  32    100    10     1e-3?   1e-2?  3.0?  adamw
spt-deep    flowers deep      20?  -  32    100    10     1e-3?   1e-2?  3.0?  adamw
spt-deep    cars    deep      20?  -  32    100    10     1e-3?   1e-2?  3.0?  adamw
bpt-deep    dogs    last:4    50   50 32    100    10     5e-2    2e-3   0.1   adamw
bpt-deep    cub     last:4    50   50 32    100    10     5e-2?   2e-3?  0.1?  adamw
bpt-deep    nabirds last:4    50   50 32    100    10     5e-2?   2e-3?  0.1?  adamw
bpt-deep    flowers last:4    50   50 32    100    10     5e-2?   2e-3?  0.1?  adamw
bpt-deep    cars    last:4    50   50 32    100    10     5e-2?   2e-3?  0.1?  adamw
"""

# A training of Flowers takes its 1,020 images a step, see `fitted`. CUB's script has c = 25.
TABLE11 = f"""{HEAD}{VPT_ROWS}
linear      cub     -         -    -  1024  100    10     4?      -      1e-3? sgd
linear      nabirds -         -    -  1024  100    10     4?      -      1e-3? sgd
linear      flowers -         -    -  1024  100    10     4?      -      1e-3? sgd
linear      dogs    -         -    -  1024  100    10     4?      -      1e-3? sgd
linear      cars    -         -    -  1024  100    10     4?      -      1e-3? sgd
vpt-shallow cub     shallow   100? -  128   100    10     1.25?   1e-3?  1e-3? sgd
spt-shallow cub     shallow   100  -  32    100    10     5e-3?   0.1?   10?   adamw
spt-shallow nabirds shallow   100  -  32    100    10     1e-2?   5e-2?  5?    adamw
spt-shallow flowers shallow   100  -  32    100    10     1e-2?   5e-4?  10?   adamw
spt-shallow dogs    shallow   100  -  32    100    10     5e-3?   1e-2?  3?    adamw
spt-shallow cars    shallow   100  -  32    100    10     2e-2?   1e-2?  3?    adamw
bpt-shallow cub     shallow   100  25 32    100    10     5e-3    0.1    10    adamw
bpt-shallow nabirds shallow   100  75 32    100    10     1e-2    5e-2   5     adamw
bpt-shallow flowers shallow   100  75 32    100    10     1e-2    5e-4   10    adamw
bpt-shallow dogs    shallow   100  75 32    100    10     5e-3    1e-2   3     adamw
bpt-shallow cars    shallow   100  75 32    100    10     2e-2    1e-2   3     adamw
spt-deep    dogs    deep      20   -  32    100    10     1e-3    1e-2   3     adamw
spt-deep    cub     deep      20?  -  32    100    10     1e-3?   1e-2?  3?    adamw
spt-deep    nabirds deep      20?  -  32    100    10     1e-3?   1e-2?  3?    adamw
spt-deep    flowers deep      20?  -  32    100    10     1e-3?   1e-2?  3?    adamw
spt-deep    cars    deep      20?  -  32    100    10     1e-3?   1e-2?  3?    adamw
bpt-deep    cub     last:4    50   50 32    100    10     5e-3?   0.1?   10?   adamw
bpt-deep    nabirds last:4    50   50 32    100    10     1e-2?   5e-2?  5?    adamw
bpt-deep    flowers last:4    50   50 32    100    10     1e-2?   5e-4?  10?   adamw
bpt-deep    dogs    last:4    50   50 32    100    10     5e-3?   1e-2?  3?    adamw
bpt-deep    cars    last:4    50   50 32    100    10     2e-2?   1e-2?  3?    adamw
"""

# Sections 0 (n = 100, c = 75) and 3 (script for ImageNet, whose c = 25 gives 72.06, not 72.15).
VARIANTS = """
method       dataset  placement m    r  batch epochs warmup lr    wd    head  optimizer
vpt-shallow  cub      shallow   100  -  128   100    10     1.25? 1e-3? 1e-3? sgd
vpt-shallow  imagenet shallow   100  -  128?  100?   10?    1.25? 1e-3? 1e-3? sgd?
spt-shallow  cub      shallow   100  -  32    100    10     5e-2? 5e-3? 0.5?  adamw
spt-shallow  imagenet shallow   100  -  1024? 100    10     0.1?  1e-3? 1e-2? adamw
bpt-fwhiten  cub      shallow   100  -  32    100    10     5e-2  5e-3  0.5   adamw
bpt-fwhiten  imagenet shallow   100  -  1024  100    10     0.1   1e-3  1e-2  adamw
bpt-twhiten  cub      shallow   100  -  32    100    10     5e-2  5e-3  0.5   adamw
bpt-twhiten  imagenet shallow   100  -  1024  100    10     0.1   1e-3  1e-2  adamw
bpt-bilinear cub      shallow   100  75 32    100    10     5e-2  5e-3  0.5   adamw
bpt-bilinear imagenet shallow   100  75 1024  100    10     0.1   1e-3  1e-2  adamw
"""

# Section 0: lengths 64 to 196 at c = 75, widths 25 to 100 at n = 100.
PROMPT_LENGTH = """
method       dataset  placement m   r  batch epochs warmup lr   wd   head optimizer
bpt-bilinear cub      shallow   ... 75 32    100    10     5e-2 5e-3 0.5  adamw
bpt-bilinear imagenet shallow   ... 75 1024  100    10     0.1  1e-3 1e-2 adamw
"""
PROMPT_WIDTH = """
method       dataset  placement m   r   batch epochs warmup lr   wd   head optimizer
bpt-bilinear cub      shallow   100 ... 32    100    10     5e-2 5e-3 0.5  adamw
bpt-bilinear imagenet shallow   100 ... 1024  100    10     0.1  1e-3 1e-2 adamw
"""

# Section 3: SUP table 8 (lr of a prompt 0.1/0.2/0.2/0.3; full fine-tuning for 100/50/50/35 epochs),
# MAE's own code for warm-up and layer decay; head's decay by share 1e-2/.1/.1/.5/.5; table 9 to
# 400 epochs, whose warm-up was not published.
TABLE9 = """
method      model     share placement m   r  batch epochs warmup lr   wd    head  decay drop
full        mae_vitb  0.01  -         -   -  1024  100    5      4e-3 0.05  -     0.65  0.1
full        mae_vitb  0.03  -         -   -  1024  100    5      4e-3 0.05  -     0.65  0.1
full        mae_vitb  0.1   -         -   -  1024  100    5      4e-3 0.05  -     0.65  0.1
full        mae_vitb  0.3   -         -   -  1024  100    5      4e-3 0.05  -     0.65  0.1
full        mae_vitb  1     -         -   -  1024  100    5      4e-3 0.05  -     0.65  0.1
full        mae_vitl  0.1   -         -   -  1024  50     5      4e-3 0.05  -     0.75  0.1
full        mae_vith  0.1   -         -   -  1024  50     5      4e-3 0.05  -     0.75  0.2
full        mae_vit2b 0.1   -         -   -  1024  35     5      1e-2 0.05  -     0.75  0.3
bpt-shallow mae_vitb  0.01  shallow   100 75 1024  100    10     0.1  1e-3  0.5   -     -
bpt-shallow mae_vitb  0.03  shallow   100 75 1024  100    10     0.1  1e-3  0.5   -     -
bpt-shallow mae_vitb  0.1   shallow   100 75 1024  100    10     0.1  1e-3  0.1   -     -
bpt-shallow mae_vitb  0.1   shallow   100 75 1024  200    20?    0.1  1e-3  0.1   -     -
bpt-shallow mae_vitb  0.1   shallow   100 75 1024  300    30?    0.1  1e-3  0.1   -     -
bpt-shallow mae_vitb  0.1   shallow   100 75 1024  400    40?    0.1  1e-3  0.1   -     -
bpt-shallow mae_vitb  0.3   shallow   100 75 1024  100    10     0.1  1e-3  0.1   -     -
bpt-shallow mae_vitb  1     shallow   100 75 1024  100    10     0.1  1e-3  1e-2  -     -
bpt-shallow mae_vitl  0.1   shallow   100 75 1024  100    10     0.2  1e-3  0.1   -     -
bpt-shallow mae_vith  0.1   shallow   100 75 1024  100    10     0.2  1e-3  0.1   -     -
bpt-shallow mae_vit2b 0.1   shallow   100 75 1024  100    10     0.3  1e-3  0.1   -     -
spt-shallow mae_vitb  0.01  shallow   100 -  1024? 100    10     0.1? 1e-3? 0.5?  -     -
spt-shallow mae_vitb  0.03  shallow   100 -  1024? 100    10     0.1? 1e-3? 0.5?  -     -
spt-shallow mae_vitb  0.1   shallow   100 -  1024? 100    10     0.1? 1e-3? 0.1?  -     -
spt-shallow mae_vitb  0.1   shallow   100 -  1024? 200    20?    0.1? 1e-3? 0.1?  -     -
spt-shallow mae_vitb  0.1   shallow   100 -  1024? 300    30?    0.1? 1e-3? 0.1?  -     -
spt-shallow mae_vitb  0.1   shallow   100 -  1024? 400    40?    0.1? 1e-3? 0.1?  -     -
spt-shallow mae_vitb  0.3   shallow   100 -  1024? 100    10     0.1? 1e-3? 0.1?  -     -
spt-shallow mae_vitb  1     shallow   100 -  1024? 100    10     0.1? 1e-3? 1e-2? -     -
spt-shallow mae_vitl  0.1   shallow   100 -  1024? 100    10     0.2? 1e-3? 0.1?  -     -
spt-shallow mae_vith  0.1   shallow   100 -  1024? 100    10     0.2? 1e-3? 0.1?  -     -
spt-shallow mae_vit2b 0.1   shallow   100 -  1024? 100    10     0.3? 1e-3? 0.1?  -     -
"""

# Section 5: SUP table 10, the deep prompt of CUB in other blocks.
TABLE10 = """
method   dataset placement  m  r  batch epochs warmup lr   wd   head optimizer
bpt-deep cub     4+0        50 50 32    100    10     5e-2 5e-3 0.5  adamw
bpt-deep cub     3+1        50 50 32    100    10     5e-2 5e-3 0.5  adamw
bpt-deep cub     2+2        50 50 32    100    10     5e-2 5e-3 0.5  adamw
bpt-deep cub     1+3        50 50 32    100    10     5e-2 5e-3 0.5  adamw
bpt-deep cub     0+4        50 50 32    100    10     5e-2 5e-3 0.5  adamw
bpt-deep cub     interval:4 50 50 32    100    10     5e-2 5e-3 0.5  adamw
"""

MAE, MOCO, SUPERVISED = (
    {"model": model, "train_fraction": "None"} for model in ("mae_vitb", "moco_vitb", "sup_vitb")
)
TABLES = {  # the text, and what all its rows share
    "table11": (TABLE11, SUPERVISED),
    "fgvc_mae": (FGVC_MAE, MAE),
    "fgvc_moco": (FGVC_MOCO, MOCO),
    "variants": (VARIANTS, MAE),
    "prompt_length": (PROMPT_LENGTH, MAE),
    "prompt_width": (PROMPT_WIDTH, MAE),
    "table9": (TABLE9, {"dataset": "imagenet", "optimizer": "adamw"}),
    "table10": (TABLE10, MAE),
}
VARIED = {"prompt_length": (64, 81, 100, 144, 196), "prompt_width": (25, 50, 75, 100)}
NAMES = {
    "m": "num_prompts",
    "r": "rank",
    "batch": "batch_size",
    "warmup": "warmup_epochs",
    "wd": "weight_decay",
    "head": "head_weight_decay",
    "share": "train_fraction",
    "decay": "layer_decay",
    "drop": "drop_path",
}
# What tells two cells of a table apart, besides the method.
KEYS = ("dataset", "model", "placement", "num_prompts", "rank", "train_fraction", "epochs")
CLASSIFIED = [study for study in reports.STUDIES if study in TABLES]
CELLS = [cell for study in CLASSIFIED for cell in reports.study_cells(study)]


def typed_rows(study):
    """A row for each cell: the text of each hyper-parameter."""
    text, shared = TABLES[study]
    head, *lines = (line.split() for line in text.strip().splitlines())
    for line in lines:
        row = dict(zip([NAMES.get(name, name) for name in head], line, strict=True)) | shared
        for dataset in FGVC if row["dataset"] == "all" else [row["dataset"]]:
            for value in VARIED.get(study, [""]):
                filled = {name: text.replace("...", str(value)) for name, text in row.items()}
                yield filled | {"dataset": dataset}


def plain(value):
    """1e-2, 0.01 and 0.01? are the same."""
    text = str(value).removesuffix("?")
    try:
        return float(text)
    except ValueError:
        return text


def key_of_row(row):
    return row["method"], *(plain(row[name]) for name in KEYS)


def key_of_cell(cell):
    read = OF_ALL | OPTIONS.get(cell.recipe.method, PROMPTED)
    values = {name: getattr(cell.recipe, name) if name in read else "-" for name in KEYS}
    return cell.method, *(plain(values[name]) for name in KEYS)


@pytest.mark.parametrize("study", CLASSIFIED)
def test_every_cell_has_the_published_settings(study):
    rows, cells = list(typed_rows(study)), reports.study_cells(study)
    typed = {key_of_row(row): row for row in rows}
    assert {key_of_cell(cell) for cell in cells} == typed.keys()
    assert len(cells) == len(rows) == len(typed)
    for cell in cells:
        for name, text in typed[key_of_cell(cell)].items():
            if name != "method":
                check(cell, name, text)


# Section 6, SUP table 8; n = c = 100 from the released demo of detection, else as in section 0.
COCO = """
method      placement m   r   lr   wd  batch schedule size
linear      shallow   -   -   5e-4 0.1 16    3x       1024
vpt-shallow shallow   100 -   5e-4 0.1 16    3x       1024
spt-shallow shallow   100 -   5e-4 0.1 16    3x       1024
bpt-shallow shallow   100 100 5e-4 0.1 16    3x       1024
vpt-deep    deep      100 -   5e-4 0.1 16    3x       1024
spt-deep    deep      100 -   5e-4 0.1 16    3x       1024
bpt-deep    last:4    50  50  5e-4 0.1 16    3x       1024
"""


@pytest.mark.parametrize("study", ["coco_mask_rcnn", "coco_cascade"])
def test_every_detector_has_the_published_settings(study):
    recipes = {cell.method: cell.recipe for cell in reports.study_cells(study)}
    head, *lines = (line.split() for line in COCO.strip().splitlines())
    for line in lines:
        row = dict(zip([NAMES.get(name, name) for name in head], line, strict=True))
        recipe = recipes.pop(row.pop("method"))
        for name, text in row.items():
            if text == "-":
                assert name not in recipe.origins
            else:
                assert plain(getattr(recipe, name)) == plain(text), (recipe.method, name)
        assert recipe.model == "mae_vitb" and recipe.dataset == "coco"
    assert not recipes


def check(cell, name, text):
    """One hyper-parameter, and whether the recipe says that it was published."""
    value, origin = getattr(cell.recipe, name), cell.recipe.origins.get(name, "")
    told = f"{cell.name}: {name} is {value} ({origin}), typed {text}"
    if text == "-":
        assert not origin, told
        return
    assert plain(value) == plain(text), told
    if text.endswith("?"):
        assert not origin or any(words in origin for words in NOT_PUBLISHED), told
    else:
        assert "none was published" not in origin, told


def test_prompts_are_gated_and_dropped_out_as_published():
    # VPT's demo of deep prompts, and GateVPT's of CUB; a start of 10 is what its code has else.
    dropout = {"vpt-deep": 0.1, "gatevpt": 0.1}
    for cell in CELLS:
        assert cell.recipe.prompt_dropout == dropout.get(cell.method, 0.0)
    gated = [cell for cell in CELLS if cell.method == "gatevpt"]
    assert [cell.recipe.gate_init for cell in gated] == [5.0] * 10
    told = {cell.name: cell.recipe.origins["gate_init"] for cell in gated}
    assert told.pop("cub-mae_vitb-gatevpt").startswith("ryongithub/GatedPromptTuning, README")
    assert all("none was published" in origin for origin in told.values())


def test_a_cell_has_the_method_that_its_row_names():
    words = {"vpt-shallow": "vpt", "vpt-deep": "vpt", "spt-shallow": "spt", "spt-deep": "spt"}
    words |= {"bpt-shallow": "bpt-bilinear", "bpt-deep": "bpt-bilinear"}
    for cell in CELLS:
        assert cell.recipe.method == words.get(cell.method, cell.method)


def test_no_cell_is_given_an_option_that_its_method_ignores():
    for cell in CELLS:
        options = OF_ALL | OPTIONS.get(cell.recipe.method, PROMPTED)
        assert cell.recipe.origins.keys() <= options, cell.name


def test_fine_tuning_ends_as_its_source_does():
    # Section 3: MAE's least rate 1e-6; VPT has neither layer-wise decay nor stochastic depth.
    for recipe in (cell.recipe for cell in CELLS if cell.recipe.method == "full"):
        if recipe.dataset == "imagenet":
            assert recipe.min_lr == 1e-6
        else:
            assert (recipe.min_lr, recipe.layer_decay, recipe.drop_path) == (1e-8, 1.0, 0.0)
    # Section 3: utils.py of BPT.
    assert {cell.recipe.min_lr for cell in CELLS if cell.recipe.method != "full"} == {1e-8}


def test_each_cell_pools_as_its_backbone_was_published():
    # Section 2: MAE the mean of patches and prompts, MoCo v3 and supervised nets the class token.
    poolings = {"mae": "avg", "moco_v3": "token", "supervised": "token"}
    for cell in CELLS:
        backbone = find_backbone(cell.recipe.model)
        assert (cell.recipe.pooling, cell.recipe.after) == ("default", "carry")
        assert backbone.pooling == poolings[backbone.pretraining]


def trained_numbers(recipe):
    """In all prompts of a ViT-B, counted in a module that is built as for a training."""
    m, d = recipe.num_prompts, 768
    prompt = bpt.build_prompt(
        recipe.prompt_options,
        width=d,
        patch_size=16,
        generator=torch.Generator(),
        whitening=torch.zeros(d, d),
        tokens=torch.zeros(m, d),
    )
    blocks = bpt.parse_placement(recipe.placement, 12)
    return len(blocks) * sum(one.numel() for one in prompt.parameters() if one.requires_grad)


# Section 0, in 10,000 numbers, by what the study varies.
COUNTS = {
    "variants": {
        "vpt-shallow": 7.68,
        "spt-shallow": 7.68,
        "bpt-fwhiten": 7.68,
        "bpt-twhiten": 66.66,
        "bpt-bilinear": 6.51,
    },
    "prompt_length": {64: 6.24, 81: 6.37, 100: 6.51, 144: 6.84, 196: 7.23},
    "prompt_width": {25: 2.17, 50: 4.34, 75: 6.51, 100: 8.68},
}


@pytest.mark.parametrize("study", COUNTS)
def test_prompts_have_the_published_numbers_of_parameters(study):
    varied = {"variants": None, "prompt_length": "num_prompts", "prompt_width": "rank"}[study]
    for cell in reports.study_cells(study):
        key = getattr(cell.recipe, varied) if varied else cell.method
        assert round(trained_numbers(cell.recipe) / 1e4, 2) == COUNTS[study][key], cell.name


@pytest.mark.parametrize("study", ["table10", "table11", "fgvc_mae", "fgvc_moco"])
def test_deep_prompts_have_163600_parameters_in_four_blocks(study):
    deep = [cell for cell in reports.study_cells(study) if cell.method == "bpt-deep"]
    assert len(deep) in (5, 6)
    assert {trained_numbers(cell.recipe) for cell in deep} == {163_600}


@pytest.mark.parametrize("model", ["mae_vitb", "moco_vitb", "sup_vitb"])
def test_prompts_in_all_blocks_have_754_times_the_parameters_of_a_shallow_one(model):
    deep, shallow = (
        trained_numbers(bpt.recipe_for("nabirds", model=model, placement=placement))
        for placement in ("deep", "shallow")
    )
    assert (deep, shallow) == (490_800, 65_100) and round(deep / shallow, 2) == 7.54
