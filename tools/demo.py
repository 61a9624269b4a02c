"""`make demo`: why a real ViT-S is bursty, where in a photograph, and what prompts do: one page.

    python -m tools.demo demo-out

measures the backbone over crops of two photographs, maps a photograph, and trains a linear head and
two kinds of prompts on hand-written digits, all of which come with scikit-learn. The page,
`demo-out/index.html`, asks for no other file. Trainings that were at their end are not repeated.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import sklearn.datasets

import bpt
import burst
from bpt.search.paired import LEVEL, holm, right_answers
from burst.extremes_tables import carriers
from reports import caveats, compare, kurtosis_parts, map_blocks, map_figure, where_it_sits
from reports.burst_report import LEAD
from reports.page import Page
from reports.search_figures import forest_figure
from reports.style import decimals

DATASET = "digits"
PHOTO = "china.jpg"


@dataclass(frozen=True)
class Choice:
    """What is measured and trained on.

    Attributes:
        model: its name.
        pixels: a side, of the photographs that it is measured with.
        trained_pixels: a side, of the digits; None: the same.
    """

    model: str
    pixels: int | None
    trained_pixels: int | None


REAL = Choice("dinov2_vits_saliency", 224, 56)
SMALL = Choice("mae_tiny", None, 32)
STEPS = {"epochs": 12, "batch_size": 8, "lr": 0.02, "head_weight_decay": 0.0}
# The prompts stand in the last two blocks, so that what lies before them is computed once.
PROMPTS = {"placement": "last:2", "num_prompts": 8}
METHODS: dict[str, dict[str, Any]] = {
    "linear": STEPS,
    "vpt": {**STEPS, **PROMPTS},
    "bpt-bilinear": {**STEPS, **PROMPTS, "rank": 6},
}


def main(out: Path, *, num_images: int = 16, share: float = 0.5) -> None:
    with step("loading the backbone"):
        chosen, backbone = loaded()
    with step(f"measuring {chosen.model} over {num_images} images"):
        survey = burst.survey(backbone, burst.images_for(backbone, "sample", num_images=num_images))
    with step(f"mapping {PHOTO}"):
        maps = burst.map_photos(backbone, [sample_photo()])
    runs = []
    for method in METHODS:
        with step(f"training {method} on {DATASET}"):
            runs.append(trained(chosen, method, out, share))
    with step("drawing the page"):
        page = written(chosen, survey, maps.maps[0], runs, out)
    print(f"open {page}", flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    print(f"{what} ...", end=" ", flush=True)
    began = time.monotonic()
    yield
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def loaded() -> tuple[Choice, burst.Backbone]:
    """The real backbone; where it is not installed, a small one, and a line that says so."""
    try:
        return REAL, burst.load_backbone(REAL.model, image_size=REAL.pixels)
    except burst.CheckpointError as error:
        print(f"\n{error}\ngoing on with {SMALL.model}, a small one ...", end=" ", flush=True)
        return SMALL, burst.load_backbone(SMALL.model)


def sample_photo() -> Path:
    return Path(sklearn.datasets.__file__).parent / "images" / PHOTO


def trained(chosen: Choice, method: str, out: Path, share: float) -> bpt.Run:
    """The run of one method; one that was interrupted goes on."""
    recipe = bpt.Recipe(
        dataset=DATASET, model=chosen.model, method=method, image_size=chosen.trained_pixels,
        augmentation="none", train_fraction=share, **METHODS[method],
    )  # fmt: skip
    folder = out / "runs" / f"{chosen.model}-{method}"
    bpt.train(recipe, folder, resume=True)
    run = bpt.open_run(folder)
    assert isinstance(run, bpt.Run)
    return run


def written(
    chosen: Choice,
    survey: burst.Survey,
    photo: burst.TokenMap,
    runs: Sequence[bpt.Run],
    out: Path,
) -> Path:
    """The page, and its figures beside it."""
    model, block = chosen.model, burstiest(survey)
    table, apart = compare(runs), differences(runs)
    steps = runs[0].metrics[-1]["step"]
    page = Page(f"Why {model} is bursty, where, and what prompts do", LEAD)
    found = page.section("What was found")
    for sentence in (why(survey), where(photo, block), who(table, apart, steps)):
        found.text(sentence, strong=True)
    for caveat in caveats(survey):
        found.text(caveat)

    section = page.section("Why: scales of dimensions, or tails within them")
    section.text(
        "Left: excess kurtosis of all entries of the response, and of the same with every "
        "dimension divided by its own deviation. Where the second line lies near 0, the heavy "
        "tails were only a spread of scales. Right: the parts that the kurtosis is the sum of."
    )
    section.figure(kurtosis_parts(survey), out / "why", f"{model}, block by block.")
    section.items(where_it_sits(survey))

    section = page.section("Where in a photograph")
    blocks = map_blocks([photo])
    section.figure(
        map_figure(photo, blocks), out / "where",
        f"{PHOTO}: share of the fourth powers and norm of each patch, and the dimensions that "
        "carry most.", photographs=True,
    )  # fmt: skip

    section = page.section("What prompts do")
    section.text(how_trained(runs))
    section.figure(
        forest_figure(apart), out / "who",
        "Paired differences of test accuracy with 95 % intervals over the test images.",
    )  # fmt: skip
    columns = ["method", "prompts", "trained", "epochs", "val_accuracy", "test_accuracy"]
    section.frame(table[columns], "Accuracies in percent; prompts and trained: numbers learned")
    section = page.section("To go on")
    section.code("\n".join(next_commands(chosen, runs)))
    section.versions(runs[0].config["versions"])
    return page.save(out / "index.html")


def burstiest(survey: burst.Survey) -> int:
    """The block whose response has the largest excess kurtosis."""
    rows = survey.table.query("quantity == 'qkx'")
    return int(rows["block"].iloc[int(rows["excess_kurtosis"].argmax())])


def why(survey: burst.Survey) -> str:
    """Whether the burstiest block is so because its dimensions differ in scale."""
    rows = survey.table.query("quantity == 'qkx'").set_index("block")
    row, heavy = rows.loc[burstiest(survey)], rows[rows["excess_kurtosis"] > 1]
    if not len(heavy):
        return (
            f"{survey.record['model']} is heavy-tailed in none of its {len(rows)} blocks: the "
            f"largest excess kurtosis is {decimals(row['excess_kurtosis'], 1)}, in block "
            f"{row.name}."
        )
    left = int((heavy["kurtosis_within_rows"] > 1).sum())
    return (
        f"{survey.record['model']} is heavy-tailed in {len(heavy)} of {len(rows)} blocks, most in "
        f"block {row.name} (excess kurtosis {decimals(row['excess_kurtosis'], 1)}; Gaussian 0, "
        f"Laplacian 3); dividing each dimension by its own deviation leaves {left} of them so, "
        f"and block {row.name} at {decimals(row['kurtosis_within_rows'], 1)}."
    )


def where(photo: burst.TokenMap, block: int) -> str:
    """How few tokens and dimensions carry half of the fourth powers in a photograph."""
    one = photo.blocks[block]
    tokens, dimensions = carriers(one.share, 0.5), carriers(one.dimensions, 0.5)
    return (
        f"In {PHOTO} half of what makes block {block} so (fourth powers) lies in {dimensions} of "
        f"{len(one.dimensions)} dimensions, and in {tokens} of {len(one.share)} tokens."
    )


def who(table: pd.DataFrame, apart: pd.DataFrame, steps: int) -> str:
    """How accurate each method was, and which differences are more than chance."""
    scores = ", ".join(
        f"{row['method']} {row['test_accuracy']:.1f} %" for row in table.to_dict("records")
    )
    told = [
        f"{row['method']} against {row['against']} {decimals(row['difference'], 1)} points"
        for row in apart.to_dict("records")
        if row["adjusted_p"] < 1 - LEVEL
    ]
    verdict = f"told apart: {'; '.join(told)}" if told else "no two of them are told apart"
    return (
        f"On digits, after the same {steps} steps at one rate: {scores}. By the test images, with "
        f"Holm's correction, {verdict}."
    )


def differences(runs: Sequence[bpt.Run]) -> pd.DataFrame:
    """Each two methods, by the same test images."""
    rows = []
    for first, second in combinations(runs, 2):
        found = bpt.paired_difference(right_answers([second.folder]), right_answers([first.folder]))
        names = {"method": second.recipe.method, "against": first.recipe.method}
        values = ("difference", "low", "high", "p_value")
        rows.append(names | {name: getattr(found, name) for name in values})
    table = pd.DataFrame(rows)
    return table.assign(adjusted_p=holm(table["p_value"].tolist()))


def how_trained(runs: Sequence[bpt.Run]) -> str:
    sizes = runs[0].config["dataset"]
    return (
        "A linear head alone, plain prompts (vpt) and prompts as a product of two matrices "
        f"(bpt-bilinear) in the last two blocks, on {sizes['train']:,} hand-written digits, "
        f"tested on {sizes['test']:,}. What lies before the prompts was computed once and kept. "
        "All took the same few steps at the same rate, with one seed: enough to see how it is "
        "done, not to rank methods, whose best rates differ; `bpt search` does that."
    )


def next_commands(chosen: Choice, runs: Sequence[bpt.Run]) -> list[str]:
    model = chosen.model + (f" --image-size {chosen.pixels}" if chosen.pixels else "")
    return [
        f"burst report --model {model} --images MY_PHOTOS --out report",
        f"burst map MY_PHOTO.jpg --model {model} --out map",
        f"bpt search folder:MY_CLASSES --model {model} --methods linear,vpt,bpt-bilinear",
        f"bpt report {' '.join(str(run.folder) for run in runs)} --out comparison",
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
