"""Maps over photographs: which pixels are painted, what the files hold, what is said."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from burst.errors import EmptyResult
from burst.patches import PatchGrid
from burst.token_map import COLUMNS, BlockMap, PhotoMaps, TokenMap
from reports.map import draw_map, map_blocks, map_figure, overlay
from reports.map_files import in_words, map_table, save_maps

ROWS, ACROSS, PATCH = 3, 5, 8
HOT = 2, 3


def token_map(name="cat.png", *, prefix=("class",), blocks=(0, 1, 2, 3), hot=HOT, beyond=3):
    """A picture whose patch `hot` holds 90 % of the fourth powers; a few pixels lie beyond."""
    rng = np.random.default_rng(0)
    count = len(prefix) + ROWS * ACROSS
    share = np.full(count, 0.1 / (count - 1))
    share[len(prefix) + hot[0] * ACROSS + hot[1]] = 0.9
    dimensions = np.array([0.1, 0.6, 0.2, 0.1])
    found = {
        block: BlockMap(float(block % 3), share, 10 + rng.random(count), dimensions)
        for block in blocks
    }
    pixels = rng.integers(0, 256, (ROWS * PATCH + beyond, ACROSS * PATCH + beyond, 3), np.uint8)
    return TokenMap(name, pixels, PatchGrid(ROWS, ACROSS, PATCH, PATCH), prefix, found)


def photo_maps(*maps):
    record = {
        "model": "test", "pretraining": "mae", "weights": "w.pth", "weights_sha256": "ab",
        "qk_sha256": "cd", "notes": ["a note"], "images": [],
    }  # fmt: skip
    return PhotoMaps(maps, (("torn.png", "empty"),), record)


def test_the_pixels_of_a_hot_patch_are_lit_and_no_others():
    one = token_map()
    values = np.zeros((ROWS, ACROSS))
    values[HOT] = 1.0
    painted = overlay(one, values, Normalize(0, 1), "inferno")
    cold = overlay(one, np.zeros((ROWS, ACROSS)), Normalize(0, 1), "inferno")
    lit = (painted != cold).any(axis=-1)
    expected = np.zeros(one.pixels.shape[:2], bool)
    down, across = HOT[0] * PATCH, HOT[1] * PATCH
    expected[down : down + PATCH, across : across + PATCH] = True
    np.testing.assert_array_equal(lit, expected)
    assert painted[expected].mean() > 2 * cold[expected].mean()


def test_what_no_patch_covers_and_what_has_no_value_stays_grey():
    one = token_map()
    values = np.ones((ROWS, ACROSS))
    values[0, 0] = np.nan
    painted = overlay(one, values, Normalize(0, 1))
    is_grey = np.ptp(painted, axis=-1) < 1e-12
    expected = np.zeros_like(is_grey)
    expected[ROWS * PATCH :], expected[:, ACROSS * PATCH :] = True, True
    expected[:PATCH, :PATCH] = True
    np.testing.assert_array_equal(is_grey, expected)


def test_the_brightest_pixels_of_the_drawing_are_those_of_the_hot_patch():
    """Drawn, and read back where the axes say that the patch lies."""
    one = token_map(beyond=0)
    figure = Figure(figsize=(5, 4), dpi=100)
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0.05, 0.05, 0.9, 0.9))
    draw_map(ax, one, one.blocks[0].share, Normalize(0, 1), "inferno")
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(float)
    height = drawn.shape[0]

    def mean_of(row, column):
        corners = [(column * PATCH, row * PATCH), ((column + 1) * PATCH, (row + 1) * PATCH)]
        (left, top), (right, bottom) = ax.transData.transform(np.array(corners) - 0.5)
        part = drawn[
            round(height - top) + 2 : round(height - bottom) - 2, round(left) + 2 : round(right) - 2
        ]
        assert part.size
        return part.mean()

    means = np.array([[mean_of(r, c) for c in range(ACROSS)] for r in range(ROWS)])
    assert np.unravel_index(means.argmax(), means.shape) == HOT
    assert np.sort(means, axis=None)[-2] < 0.75 * means.max()


@pytest.mark.parametrize(
    "prefix", [(), ("class",), ("class", *(f"register {i}" for i in range(4)))]
)
def test_tokens_that_are_no_patch_stand_beside_with_their_values(prefix):
    one = token_map(prefix=prefix)
    figure = Figure()
    ax = figure.add_subplot()
    draw_map(ax, one, one.blocks[0].times_even, Normalize(0, 1))
    assert [patch.get_gid() for patch in ax.patches] == list(prefix)
    height = len(one.pixels)
    assert all(patch.get_y() > height - 0.5 for patch in ax.patches)
    low, high = ax.get_ylim()
    assert high == -0.5 and all(p.get_y() + p.get_height() <= low for p in ax.patches)
    texts = [text.get_text() for text in ax.texts]
    assert len(texts) == len(prefix) and all(text.endswith("×") for text in texts)
    assert not plt.get_fignums()


def test_the_first_the_burstiest_and_the_last_block_are_shown():
    assert map_blocks([token_map()]) == (0, 2, 3)  # kurtosis 0, 1, 2, 0
    assert map_blocks([token_map(blocks=(2,))]) == (2,)
    assert map_blocks([token_map(blocks=(0, 1, 2))]) == (0, 1, 2)  # the last: the middle one too
    with pytest.raises(EmptyResult):
        map_blocks([])


def test_the_name_of_a_photograph_is_no_formula():
    figure = map_figure(token_map(), (1,), title="IMG_$1_$2.jpg")
    figure.draw_without_rendering()
    assert "IMG_$1_$2.jpg" in figure.get_suptitle()


@pytest.mark.parametrize("blocks", [(1,), (0, 1, 2, 3)])
def test_a_figure_has_a_column_a_block_in_bands_of_three(blocks):
    figure = map_figure(token_map(), blocks)
    titles = [ax.get_title().partition("\n")[0] for ax in figure.axes]
    assert [title for title in titles if title.startswith("block")] == [
        f"block {b}" for b in blocks
    ]
    with pytest.raises(EmptyResult, match=r"blocks \[7\].*has maps of \[0, 1, 2, 3\]"):
        map_figure(token_map(), [7])


def test_a_colour_bar_is_pointed_where_values_lie_beyond_it():
    one = token_map()
    uneven = replace(one.blocks[0], norm=np.geomspace(1, 9, 16))
    even = replace(one.blocks[0], share=np.full(16, 1 / 16))
    for block, ends in ((uneven, ["min", "both"]), (even, ["neither", "neither"])):
        figure = map_figure(replace(one, blocks={0: block}), [0])
        bars = [ax._colorbar for ax in figure.axes if hasattr(ax, "_colorbar")]
        assert [bar.extend for bar in bars] == ends


def test_no_text_of_a_map_is_smaller_than_seven_points():
    figure = map_figure(token_map(prefix=("class", "register 0")), (0, 1, 2))
    assert min(text.get_size() for text in figure.findobj(Text) if text.get_text()) >= 7


def test_a_response_of_zero_is_drawn_without_a_warning():
    one = token_map()
    nothing = BlockMap(np.nan, np.full(16, np.nan), np.zeros(16), np.full(4, np.nan))
    empty = TokenMap(one.image, one.pixels, one.grid, one.prefix, {0: nothing})
    map_figure(empty, [0])
    assert in_words(empty, [0]) == ["Block 0: its response is zero."]
    assert map_table([empty], [0]).row_count == 1


@pytest.mark.slow
def test_a_folder_has_a_figure_a_photograph_and_one_page(tmp_path):
    found = photo_maps(token_map(), token_map("dogs/cat.jpg"), token_map("a b/ü?.png"))
    files = save_maps(found, tmp_path / "out", blocks=(1,))
    stems = ["map_cat", "map_cat-2", "map_ü"]
    figures = [f"{stem}{suffix}" for stem in stems for suffix in (".png", ".pdf")]
    rest = ["map.csv", "map_dimensions.csv", "run.json"]
    assert [file.name for file in files] == ["index.html", *figures, *rest]
    assert all(file.stat().st_size for file in files)
    page = files[0].read_text()
    assert page.count("<img ") == 3 and "test" in page and "http" not in page.split("<main>")[1]
    with Image.open(files[1]) as image:
        assert image.width > 1000
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["blocks"] == [1] and record["bad_images"] == [["torn.png", "empty"]]
    assert [one["figure"] for one in record["pictures"]] == [f"{stem}.png" for stem in stems]


def test_tables_hold_what_was_mapped(tmp_path):
    one = token_map()
    save_maps(photo_maps(one), tmp_path, blocks=(1, 3))
    table = pd.read_csv(tmp_path / "map.csv")
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * 16 and set(table["block"]) == {1, 3}
    hot = table.loc[table.groupby("block")["share"].idxmax()]
    assert hot[["row", "column"]].to_numpy().tolist() == [list(HOT)] * 2
    dimensions = pd.read_csv(tmp_path / "map_dimensions.csv")
    assert dimensions["share"].tolist() == [0.1, 0.6, 0.2, 0.1] * 2


def test_what_is_said_is_what_was_measured():
    (sentence,) = in_words(token_map(), [2])
    assert "excess kurtosis 2.0" in sentence
    assert "1 of 16 tokens and in 1 of 4 dimensions" in sentence
    assert "row 2, column 3 (90.0 %), and dimension 1 (60.0 %)" in sentence
    console = Console(width=100, record=True)
    console.print(map_table([token_map()], [2]))
    line = next(line for line in console.export_text().splitlines() if "cat.png" in line)
    assert line.split() == [
        *("cat.png", "2", "2.0", "2,3:", "90.0", "%", "1/16"),
        *("1:", "60.0", "%", "1/4"),
    ]


@pytest.mark.slow
def test_names_that_are_long_or_no_text_cost_no_page(tmp_path):
    latin = "\udce9.jpg"  # as `os.fsdecode` has a byte of Latin-1
    long, foreign = 240 * "x" + ".jpg", 110 * "\u0436"
    maps = [token_map(name, blocks=(0,)) for name in (long, long, foreign + latin)]
    page, *figures = save_maps(photo_maps(*maps), tmp_path)
    assert f"{foreign}\ufffd.jpg" in page.read_text(encoding="utf-8")
    names = [path.name for path in figures if path.suffix == ".png"]
    assert names[:2] == [f"map_{146 * 'x'}.png", f"map_{146 * 'x'}-2.png"]
    assert len(set(names)) == 3 and max(len(name.encode()) for name in names) < 170
    assert set(pd.read_csv(tmp_path / "map.csv")["image"]) >= {long, f"{foreign}\ufffd.jpg"}
    console = Console(record=True, width=100)
    console.print(map_table([token_map(f"caf{latin}", blocks=(0,))]))
    assert "caf\ufffd.jpg" in console.export_text()
