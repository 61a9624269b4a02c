"""Figures of several backbones hold the numbers that they are drawn from."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from support import float_histogram

import reports
from burst import EmptyResult
from reports.backbones import draw_density, draw_distances, draw_heads
from reports.style import Line


def heads_table(models=("a", "b"), blocks=3, heads=4):
    rng = np.random.default_rng(0)
    rows = [
        {
            "model": model,
            "block": block,
            "head": head,
            "quantity": "qk",
            "excess_kurtosis": rng.normal(),
            "ks_gaussian": rng.uniform(),
            "ks_laplace": rng.uniform(),
        }
        for model in models
        for block in range(blocks)
        for head in ("all", *map(str, range(heads)))
    ]
    return pd.DataFrame(rows)


def test_a_density_is_that_of_standardised_entries(rng):
    values = rng.laplace(3.0, 2.0, 50_000).astype(np.float32)
    ax = plt.figure().add_subplot()
    line = draw_density(ax, float_histogram(values), Line("x", "k"))
    at, density = (np.asarray(one, float) for one in (line.get_xdata(), line.get_ydata()))
    standard = (values - values.mean()) / values.std()
    expected, edges = np.histogram(standard, 200, (-10, 10), density=True)
    middle = (edges[1:] + edges[:-1]) / 2
    near = np.abs(middle) < 2
    drawn = np.interp(middle[near], at, np.nan_to_num(density))
    assert np.allclose(drawn, expected[near], rtol=0.15)
    plt.close("all")


def test_an_overlay_has_a_panel_a_block_and_a_line_a_backbone(rng):
    found = {
        model: {block: float_histogram(rng.normal(size=2000)) for block in range(5)}
        for model in ("mae_x", "sup_x")
    }
    figure = reports.overlay_grid(found, quantity="qkx")
    panels = [ax for ax in figure.axes if ax.get_title(loc="left").startswith("block")]
    assert len(panels) == 5
    assert all(len(ax.lines) == 4 for ax in panels)  # two backbones, two references
    with pytest.raises(EmptyResult):
        reports.overlay_grid({}, quantity="qk")


def test_the_laws_panel_holds_the_distances_and_none_is_cut_off():
    table = heads_table()
    figure = reports.law_lines(table)
    assert len(figure.axes) == 2
    part = table[(table["model"] == "a") & (table["head"] == "all")]
    handles = draw_distances(plt.figure().add_subplot(), part)
    assert np.array_equal(handles["Gaussian"].get_ydata(), part["ks_gaussian"])
    assert np.array_equal(handles["Laplacian"].get_ydata(), part["ks_laplace"])
    top = figure.axes[0].get_ylim()[1]
    whole = table[table["head"] == "all"]
    assert top > whole[["ks_gaussian", "ks_laplace"]].to_numpy().max()
    plt.close("all")


def test_a_map_of_heads_holds_their_kurtosis():
    table = heads_table()
    part = table[(table["model"] == "b") & (table["head"] != "all")]
    mesh = draw_heads(plt.figure().add_subplot(), part, reach=3.0)
    expected = part["excess_kurtosis"].to_numpy().reshape(3, 4)
    assert np.array_equal(np.asarray(mesh.get_array()).reshape(3, 4), expected)
    for most, known in ((0.5, (0.3, 1, 3)), (9.0, (0.3, 1, 3)), (2e4, (1, 10, 100, 1000, 10000))):
        maps = reports.head_maps(table.assign(excess_kurtosis=most), quantity="qk")
        *_, bar = maps.axes  # beside the two maps
        assert len(maps.axes) == 3
        shown = [text.get_text() for text in bar.get_yticklabels()]
        assert [one for one in shown if one[0] not in "−0"][-2:] == [f"{x:g}" for x in known[-2:]]
        assert len(shown) == 2 * len(known) + 1
    with pytest.raises(EmptyResult, match="per_head"):
        reports.head_maps(table, quantity="qkx")
    plt.close("all")


@pytest.mark.parametrize("style", ["paper", "slide"])
def test_long_names_of_models_stand_apart_and_dollars_make_no_formula(style):
    models = ("timm:vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", "hf:a$b/" + "c$" * 20, "c")
    table = heads_table(models)
    with reports.figure_style(style), reports.house_style():
        for figure in (reports.law_lines(table), reports.head_maps(table, quantity="qk")):
            figure.draw_without_rendering()
            titles = [ax._left_title for ax in figure.axes[:3]]
            ends = [(box.x0, box.x1) for box in (one.get_window_extent() for one in titles)]
            assert all(first[1] < second[0] for first, second in pairwise(ends))
            assert [one.get_text().replace("\n", "") for one in titles] == list(models)
            assert not any(one.get_parse_math() for one in titles)


def test_a_slide_has_larger_text():
    with reports.house_style():
        paper = plt.rcParams["font.size"], plt.rcParams["lines.linewidth"]
    with reports.figure_style("slide"), reports.house_style():
        slide = plt.rcParams["font.size"], plt.rcParams["lines.linewidth"]
    assert slide == pytest.approx([1.25 * one for one in paper])
    with pytest.raises(Exception, match="paper"), reports.figure_style("papr"):
        pass
