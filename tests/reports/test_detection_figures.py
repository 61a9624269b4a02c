"""Photographs with objects: a colour an object, marks for what differs, names that hide none."""

from collections import Counter
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from scenes import (
    SIDE,
    annotation,
    detection,
    invented,
    photo,
    photographs,
    some_scenes,
    truth_of,
)

import reports
from burst.errors import EmptyResult, OutputError, ShapeError
from reports.detection_drawing import PAINT, Drawn, draw_objects, object_colours, painted
from reports.detection_figures import scene_objects
from reports.style import OBJECT_COLOURS

NAMES = {1: "cat", 7: "dog"}


def gids(artists):
    return Counter(artist.get_gid() for artist in artists if artist.get_gid())


def matched(images=6):
    return reports.match_detections(*some_scenes(images))


@pytest.fixture
def ax():
    """Axes of two inches that show a photograph of 60 pixels."""
    axes = plt.figure(figsize=(2, 2)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, SIDE), ylim=(SIDE, 0))
    yield axes
    plt.close("all")


def test_an_object_has_one_colour_in_all_columns():
    for scene in matched().scenes:
        truth, *columns = scene_objects(matched(), scene)
        colours = [one.colour for one in truth]
        assert len(set(colours)) == len(scene.objects)
        for shown, answer in zip(columns, scene.answers.values(), strict=True):
            at = {number: colours[number] for number in range(len(colours))}
            missed = [one.colour for one in shown if one.kind == "missed"]
            assert missed == [at[one] for one in at if one not in answer.found]
            found = [one.colour for one in shown if one.kind == "found"]
            assert found == [at[one] for one in answer.matched if one is not None]
            assert all(one.colour not in colours for one in shown if one.kind == "false")


def test_what_one_model_finds_alone_is_ringed_and_what_both_find_is_not():
    truth = truth_of([annotation(1, (2, 2, 10, 10)), annotation(1, (30, 30, 10, 10))])
    both, alone = detection(1, (2, 2, 10, 10)), detection(1, (30, 30, 10, 10))
    matching = reports.match_detections(truth, {"A": [both], "B": [both, alone]})
    _, first, second = scene_objects(matching, matching.scenes[0])
    assert [(one.kind, one.ringed) for one in first] == [("missed", False), ("found", False)]
    assert [(one.kind, one.ringed) for one in second] == [("found", False), ("found", True)]
    one = reports.match_detections(truth, {"A": [both]})
    assert not any(drawn.ringed for drawn in scene_objects(one, one.scenes[0])[1])


def test_every_mark_is_drawn_as_often_as_the_matching_has_it():
    matching = matched()
    choice = reports.choose_scenes(matching, each=1)
    figure = reports.side_by_side_figure(matching, choice.scenes, photo)
    panels = iter([ax for ax in figure.axes if ax.images])
    for scene in choice.scenes:
        assert gids(next(panels).get_children())["box"] == len(scene.objects)
        answers = list(scene.answers.values())
        for answer, other in zip(answers, answers[::-1], strict=True):
            drawn = gids(next(panels).get_children())
            assert drawn["box"] == len(answer.found)
            assert drawn["missed"] == len(scene.objects) - len(answer.found)
            assert drawn["false"] == drawn["hatch"] == len(answer.false)
            assert drawn["ring"] == len(answer.found - other.found)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["ground truth", "A", "B"]
    texts = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"missed", "false positive", "found by this model only"} <= texts


def test_the_same_scenes_give_the_same_figure(tmp_path):
    matching = matched()
    written = []
    for name in ("one", "other"):
        scenes = reports.choose_scenes(matching, each=1).scenes[:1]
        files = reports.save_figure(
            reports.side_by_side_figure(matching, scenes, photo), tmp_path / name
        )
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]


def test_without_scenes_there_is_no_figure():
    with pytest.raises(EmptyResult, match="no image"):
        reports.side_by_side_figure(matched(), [], photo)


def test_nine_objects_have_nine_colours_and_the_tenth_that_of_the_farthest():
    boxes = [(20 * i, 0, 10, 20 - i) for i in range(9)]
    colours = object_colours(boxes)
    assert len(set(colours)) == len(OBJECT_COLOURS) == 9
    assert object_colours([*boxes, (0, 0, 5, 5)])[9] == colours[8]
    assert object_colours([]) == []


@settings(max_examples=25)
@given(arrays(bool, (3, 6, 5)), arrays(np.uint8, (6, 5, 3)))
def test_a_pixel_is_of_the_smallest_mask_over_it_and_never_of_two(masks, photograph):
    colours = OBJECT_COLOURS[:3]
    shown = [Drawn((0, 0, 1, 1), one, mask=mask) for one, mask in zip(colours, masks, strict=True)]
    pixels = painted(Image.fromarray(photograph), shown)
    order = sorted(range(3), key=lambda one: (masks[one].sum(), -one))  # of equal ones the last
    for y, x in np.ndindex(6, 5):
        over = [one for one in order if masks[one][y, x]]
        if not over:
            assert np.array_equal(pixels[y, x], photograph[y, x])
            continue
        ink = 255 * np.array(to_rgb(colours[over[0]]))
        mixed = (1 - PAINT) * photograph[y, x] + PAINT * ink
        assert min(np.abs(pixels[y, x] - one).max() for one in (ink, mixed)) <= 1
        assert pixels[y, x].max() > 60  # never black, whatever overlaps


def test_a_faded_photograph_is_grey_and_as_light():
    image = photo(1)
    pixels = painted(image, [], fade=1.0)
    assert np.ptp(pixels, axis=2).max() == 0
    assert np.allclose(pixels[..., 0], np.asarray(image).mean(axis=2), atol=0.51)


def test_a_mask_of_another_photograph_is_told():
    shown = [Drawn((0, 0, 5, 5), "red", mask=np.ones((SIDE, SIDE + 1), bool))]
    with pytest.raises(ShapeError, match=r"mask of \(60, 61\) on a photograph of \(60, 60\)"):
        painted(photo(1), shown)


def test_a_ring_runs_around_its_mask_at_a_distance(ax):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:40, 25:35] = mask[30:40, 10:35] = True
    (ring,) = (
        artist
        for artist in draw_objects(ax, [Drawn((10, 20, 25, 20), "red", mask=mask, ringed=True)])
        if artist.get_gid() == "ring"
    )
    rows, columns = np.nonzero(mask)
    corners = np.stack([columns + 0.5, rows + 0.5], axis=1)
    (path,) = ring.get_paths()
    assert path.contains_points(corners).all()
    gaps = np.linalg.norm(path.vertices[:, None] - corners, axis=2).min(axis=1)
    assert np.allclose(gaps, 1.8 * SIDE / 144, atol=0.5)  # points, in a figure of 144


def test_twenty_five_names_lie_in_the_picture_and_over_no_other():
    boxes = [(11 * (i % 5) + 1, 11 * (i // 5) + 1, 9, 9) for i in range(25)]
    found = [detection(1, box, masks=False) for box in boxes]
    axes = plt.figure(figsize=(4, 4)).add_axes((0, 0, 1, 1))
    artists = reports.draw_detections(axes, photo(1), found, NAMES)
    names = [one for one in artists if one.get_gid() == "name"]
    frames = [one.get_window_extent() for one in names]
    assert gids(artists)["box"] == 25 and len(names) >= 20
    assert not any(one.overlaps(other) for one, other in combinations(frames, 2))
    window = axes.get_window_extent()
    assert all(window.x0 <= one.x0 and one.x1 <= window.x1 for one in frames)
    assert all(window.y0 <= one.y0 and one.y1 <= window.y1 for one in frames)
    plt.close("all")


def test_names_that_find_no_room_are_left_out(ax):
    shown = [Drawn((20, 20, 8, 8), "red", text="a long name 99") for _ in range(9)]
    names = gids(draw_objects(ax, shown))["name"]
    assert 1 <= names < 9


def test_a_name_is_written_with_its_score():
    axes = plt.figure(figsize=(4, 4)).add_subplot()
    artists = reports.draw_detections(axes, photo(1), [detection(1, (20, 20, 9, 9), 0.876)], NAMES)
    assert [one.get_text() for one in artists if one.get_gid() == "name"] == ["cat 88"]
    plt.close("all")


@pytest.mark.parametrize("size", [(640, 427), (1001, 667), (333, 1200), (639, 10)])
def test_a_prediction_has_the_size_of_its_photograph(size, tmp_path):
    path = tmp_path / "found.png"
    image = Image.new("RGB", size, "white")
    found = [detection(1, (5, 2, 20, 6), masks=False)]
    assert reports.save_prediction(image, found, path, names=NAMES) == path
    with Image.open(path) as written:
        times = -(-640 // max(size))
        assert written.size == (times * size[0], times * size[1])
        assert np.asarray(written).min() < 250  # something is drawn


def test_a_small_photograph_is_enlarged_a_whole_number_of_times(tmp_path):
    path = reports.save_prediction(photo(1), [], tmp_path / "x.png", names=NAMES)
    with Image.open(path) as written:
        assert written.size == (660, 660)


def test_a_picture_appears_whole_or_not_at_all(tmp_path, short_files):
    path = tmp_path / "found.png"
    path.write_bytes(b"before")
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    with pytest.raises(OutputError, match="found.png"):
        reports.save_prediction(Image.fromarray(noise), [], path, names=NAMES)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_no_pictures_is_told(tmp_path):
    with pytest.raises(OutputError, match=r"such as found\.png"):
        reports.save_prediction(photo(1), [], tmp_path / "found.txt", names=NAMES)


def test_real_photographs_are_drawn_without_masks_that_do_not_fit(real_data, rng):
    truth, opener = photographs(real_data)
    models = {"A": invented(truth, 0.5, rng), "B": invented(truth, 0.8, rng)}
    matching = reports.match_detections(truth, models, score=0.2)
    choice = reports.choose_scenes(matching, each=1)
    figure = reports.side_by_side_figure(matching, choice.scenes, opener)
    assert isinstance(figure, Figure) and sum(len(ax.images) for ax in figure.axes) == 6
