"""Kept pixels give the batches that decoding each time would, and are whole or not there."""

import errno
import os
import pickle
import shutil
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from support import SIZE, backbone_of, vit

import bpt.cache
import bpt.pixels
from bpt import Recipe, eval_batches, eval_transform, open_dataset, train_batches, train_transform
from bpt.cache import cache_root
from bpt.dataset import FileOpener, Split, fold_of
from bpt.dataset.folds import all_training_images
from bpt.image_batches import ImageBatches
from bpt.loading import Buffers, crop
from bpt.pixels import Kept, Pixels, in_order, stored_pixels, threads
from bpt.transforms import Box, TrainTransform
from burst import ImageError
from burst.preprocess import Preprocess

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LEVEL = 2 / 255  # one of 256, normalised with a deviation of 0.5


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("BPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def backbone():
    return backbone_of(vit())


@pytest.fixture
def benchmark(colours):
    return open_dataset("folder", colours)


@pytest.fixture
def whole(backbone):
    return Kept(preprocess=backbone.preprocess, smallest_crop=0.08)


@pytest.fixture
def centre(backbone):
    return Kept(preprocess=backbone.preprocess)


@pytest.fixture
def own(tmp_path, colours):
    """A copy of the images, to be changed, and how to open it."""
    place = tmp_path / "images"
    shutil.copytree(colours, place)
    return place, lambda: open_dataset("folder", place).train


def stored(split, kept, say=lambda _: None):
    found = stored_pixels(split, kept, say=say)
    assert found is not None
    return replace(split, opener=found)


def split_of(place):
    opener = FileOpener(place)
    names = tuple(sorted(opener.files.sizes))
    return Split(names, np.zeros(len(names), np.int64), opener)


def epoch_of(split, transform, **options):
    settings = {"batch_size": 8, "seed": 3, "epoch": 1, **options}
    return list(train_batches(split, transform, **settings))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(x, y)
        for a, b in zip(one, other, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def left_in(root):
    return [path.name for path in root.iterdir()] if root.exists() else []


# --- the batches ---


def test_an_image_that_is_kept_as_it_was_gives_the_same_crops(benchmark, backbone, whole):
    transform = train_transform(benchmark, backbone)
    slow = epoch_of(benchmark.train, transform)
    fast = epoch_of(stored(benchmark.train, whole), transform)
    assert len(fast) == 3
    for (images, labels), (expected, answers) in zip(fast, slow, strict=True):
        assert images.shape == expected.shape and images.dtype == expected.dtype
        assert images.is_contiguous()
        assert torch.equal(labels, answers)
        # Pillow and torch round their weights and what is between the two passes differently.
        assert (images - expected).abs().max() < 2.01 * LEVEL
        assert (images - expected).abs().mean() < 0.2 * LEVEL


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_that_of_pillow_up_to_rounding(rng, mode, flip):
    preprocess = Preprocess(image_size=24, mean=[0.5] * 3, std=[0.5] * 3, interpolation=mode)
    pixels = rng.integers(0, 256, (50, 70, 3), np.uint8)
    box = {"top": 3, "left": 11, "height": 37, "width": 53, "flip": flip}
    expected = preprocess.crop(Image.fromarray(pixels), **box)
    found = crop(pixels, Box(**box), 24, mode)
    assert (found.int() - expected.int()).abs().max() <= 2


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_resizes_to_the_same_batches(benchmark, backbone, whole):
    transform = train_transform(benchmark, backbone)
    kept = stored(benchmark.train, whole)
    expected = epoch_of(kept, transform)
    found = epoch_of(kept, transform, device=torch.device("cuda"))
    for (images, labels), (others, answers) in zip(found, expected, strict=True):
        assert images.is_cuda and torch.equal(labels, answers)
        assert (images.cpu() - others).abs().max() < 1.01 * LEVEL


def test_boxes_of_a_reduced_image_have_the_same_distribution(tmp_path):
    # Large enough that whole pixels do not show in the distribution.
    preprocess = Preprocess(image_size=64, mean=[0.5] * 3, std=[0.5] * 3)
    kept = Kept(preprocess=preprocess, smallest_crop=0.08)
    Image.new("RGB", (600, 454)).save(tmp_path / "large.png")
    pixels = stored(split_of(tmp_path), kept).opener["large.png"]
    assert pixels.shape == (227, 300, 3)  # ceil(64 / sqrt(0.08)) = 227
    transform = TrainTransform(preprocess, smallest_crop=0.08, flip=True)

    def drawn(height, width):
        boxes = np.array([transform.draw(height, width) for _ in range(1500)], float)
        top, left, h, w, _ = boxes.T
        relative = (top + h / 2) / height, (left + w / 2) / width
        return [h * w / (height * width), w / h, *relative], boxes

    original, _ = drawn(454, 600)
    reduced, boxes = drawn(227, 300)
    for one, other in zip(original, reduced, strict=True):
        assert ks_2samp(one, other).pvalue > 0.01
    assert (boxes[:, 2] * boxes[:, 3]).min() >= 0.99 * 64**2  # none is enlarged, up to rounding


def test_of_a_reduced_image_the_content_is_the_same(tmp_path, whole):
    ramp = np.linspace(0, 255, 400)[None, :, None] * np.ones((120, 1, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "ramp.png")
    pixels = stored(split_of(tmp_path), whole).opener["ramp.png"]
    assert pixels.shape == (57, 190, 3)
    expected = np.linspace(0, 255, 190)
    assert np.abs(pixels[30, :, 1] - expected).max() < 3


def test_an_evaluation_is_the_same_bit_for_bit(benchmark, backbone, centre):
    transform = eval_transform(backbone)
    kept = stored(benchmark.test, centre)
    for rank in range(2):
        options = {"batch_size": 5, "rank": rank, "world": 2}
        expected = list(eval_batches(benchmark.test, transform, **options))
        assert same(list(eval_batches(kept, transform, **options)), expected)


def test_an_epoch_goes_on_from_any_batch(benchmark, backbone, whole):
    transform, kept = train_transform(benchmark, backbone), stored(benchmark.train, whole)
    epoch = epoch_of(kept, transform)
    for start in range(4):
        assert same(epoch[start:], epoch_of(kept, transform, start=start))
    assert not same(epoch, epoch_of(kept, transform, epoch=2))
    assert not same(epoch, epoch_of(kept, transform, seed=4))


@pytest.mark.parametrize("world", [2, 4])
def test_the_processes_together_see_what_one_would(benchmark, backbone, whole, world):
    transform, kept = train_transform(benchmark, backbone), stored(benchmark.train, whole)
    parts = [epoch_of(kept, transform, rank=rank, world=world) for rank in range(world)]
    order = torch.cat([torch.arange(8)[rank::world] for rank in range(world)])
    for step, (images, _) in enumerate(epoch_of(kept, transform)):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), images[order])


def test_batches_of_several_parts_do_not_depend_on_the_threads(
    benchmark, backbone, whole, monkeypatch
):
    transform, kept = train_transform(benchmark, backbone), stored(benchmark.train, whole)
    epoch = epoch_of(kept, transform, batch_size=10)
    for count, part in ((1, 10), (5, 1), (3, 4)):
        monkeypatch.setattr(bpt.pixels, "threads", lambda count=count: count)
        monkeypatch.setattr(bpt.loading, "PART", part)
        assert same(epoch, epoch_of(kept, transform, batch_size=10))


def test_memory_is_given_back_with_the_last_view_of_a_tensor_and_then_used_again():
    buffers = Buffers()
    with torch.no_grad():
        first = buffers.take((4, 3))
        place, view = first.data_ptr(), first[2:].numpy()
        del first
        second = buffers.take((4, 3))
        assert second.data_ptr() != place and buffers.free == []
        del view
        assert [one.ctypes.data for one in buffers.free] == [place]
        assert buffers.take((2, 3)).data_ptr() != place
        assert buffers.take((4, 3)).data_ptr() == place


def test_a_batch_stays_as_it_is_while_a_part_of_it_is_read(benchmark, backbone, whole):
    transform, kept = train_transform(benchmark, backbone), stored(benchmark.train, whole)
    found = []
    with torch.no_grad():
        for images, _ in train_batches(kept, transform, batch_size=2, seed=3, epoch=1):
            found.append((images[1:], images[1:].clone()))
            del images
    assert len(found) == 12 and all(torch.equal(part, then) for part, then in found)


def test_the_global_generator_is_only_used_within_the_callers_thread(benchmark, backbone, whole):
    transform, kept = train_transform(benchmark, backbone), stored(benchmark.train, whole)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = [torch.rand(1) for _ in train_batches(kept, transform, batch_size=8, seed=0, epoch=0)]
    assert torch.equal(torch.cat(drawn), expected)


def test_where_torch_cannot_resize_pillow_does(benchmark, backbone):
    lanczos = replace(backbone, interpolation="lanczos")
    transform = train_transform(benchmark, lanczos)
    kept = Kept(preprocess=lanczos.preprocess, smallest_crop=0.08)
    expected = epoch_of(benchmark.train, transform)
    assert same(epoch_of(stored(benchmark.train, kept), transform), expected)


def test_a_subset_has_its_own_images(benchmark, backbone, whole):
    kept = stored(benchmark.train, whole).subset([5, 5, 2])
    expected = benchmark.train.subset([5, 5, 2])
    for place in range(3):
        image, label = kept[place]
        assert image.tobytes() == expected[place][0].tobytes()
        assert label == expected[place][1]


def test_kept_pixels_pickle_without_their_content(benchmark, whole):
    kept = stored(benchmark.train, whole)
    packed = pickle.dumps(kept.opener)
    assert len(packed) < 24 * 20 * 16
    found = pickle.loads(packed)
    name = kept.names[7]
    assert np.array_equal(found[name], kept.opener[name])


# --- threads ---


def test_a_closed_epoch_leaves_no_thread(benchmark, backbone, whole):
    transform, kept = train_transform(benchmark, backbone), stored(benchmark.train, whole)
    before = threading.active_count()
    batches = train_batches(kept, transform, batch_size=2, seed=0, epoch=0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    assert len(epoch_of(kept, transform)) == 3
    assert threading.active_count() == before


def test_an_error_in_a_thread_is_raised_in_its_turn_and_no_thread_stays():
    def work(number):
        if number == 2:
            raise ValueError("two")
        return number

    before, found = threading.active_count(), []
    with pytest.raises(ValueError, match="two"):
        found.extend(in_order(work, range(5), ahead=4))
    numbers = in_order(work, range(5), ahead=4)
    assert [next(numbers), next(numbers)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(numbers)
    assert threading.active_count() == before


def test_no_more_is_taken_than_is_asked_for():
    taken = []
    items = (taken.append(item) or item for item in range(100))
    numbers = in_order(lambda item: item, items, ahead=3)
    assert next(numbers) == 0
    assert len(taken) == 4
    numbers.close()


def test_a_thread_splits_no_operation_over_other_threads():
    torch_threads = torch.get_num_threads()
    assert list(in_order(lambda _: torch.get_num_threads(), range(3), ahead=1)) == [1, 1, 1]
    assert torch.get_num_threads() == torch_threads


# --- what is there, and what is not ---


def test_images_are_decoded_once(benchmark, backbone, whole, monkeypatch):
    said = []
    first = stored(benchmark.train, whole, said.append)
    assert len(said) == 1 and "decoding 24 images once into" in said[0]
    monkeypatch.setattr(FileOpener, "__call__", None)
    second = stored(benchmark.train, whole, said.append)
    assert len(said) == 1
    transform = train_transform(benchmark, backbone)
    assert same(epoch_of(first, transform), epoch_of(second, transform))


def test_another_list_or_form_has_another_key(benchmark, whole, centre):
    train = benchmark.train
    larger = replace(whole.preprocess, image_size=SIZE + 2)
    forms = [
        whole,
        centre,
        replace(whole, smallest_crop=0.5),
        replace(whole, preprocess=larger),
        replace(centre, preprocess=larger),
        replace(centre, preprocess=replace(centre.preprocess, crop_fraction=1.0)),
        replace(centre, preprocess=replace(centre.preprocess, crop_mode="squash")),
        replace(centre, preprocess=(bordered := replace(centre.preprocess, crop_mode="border"))),
        replace(centre, preprocess=replace(bordered, mean=(0.1, 0.2, 0.3))),  # the border's colour
        replace(whole, preprocess=replace(whole.preprocess, interpolation="bilinear")),
    ]
    keys = [form.key(train) for form in forms]
    keys.append(whole.key(train.subset(range(20))))
    assert len(set(keys)) == len(keys)
    assert whole.key(train.subset(range(23, -1, -1))) == keys[0]  # the order is none of a file
    same_pixels = replace(whole, preprocess=replace(whole.preprocess, mean=(0.1, 0.2, 0.3)))
    assert same_pixels.key(train) == whole.key(train)


def test_a_changed_file_has_another_key(own, whole):
    place, opened = own
    file = place / "train" / "red" / "5.png"
    keys = [whole.key(opened())]
    os.utime(file, ns=(0, 0))
    keys.append(whole.key(opened()))
    file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, ns=(0, 0))
    keys.append(whole.key(opened()))
    file.rename(file.with_name("6a.png"))
    keys.append(whole.key(opened()))
    assert len(set(keys)) == 4
    assert whole.key(opened()) == keys[-1]


def test_a_changed_archive_has_another_key(tmp_path, colours, whole):
    place = tmp_path / "images.zip"
    with zipfile.ZipFile(place, "w") as archive:
        archive.write(colours / "train" / "red" / "5.png", "5.png")
    first = whole.key(split_of(place))
    assert stored(split_of(place), whole)[0][0].size == (20, 16)
    os.utime(place, ns=(0, 0))
    assert whole.key(split_of(place)) != first


@pytest.mark.parametrize("damage", ["pixels", "shapes", "empty", "gone", "other"])
def test_a_damaged_cache_is_built_again(benchmark, whole, root, damage):
    expected = stored(benchmark.train, whole)[3][0].tobytes()
    (folder,) = root.iterdir()
    pixels, shapes = folder / "pixels.u8", folder / "shapes.npy"
    if damage == "pixels":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "shapes":
        shapes.write_bytes(shapes.read_bytes()[:-1])
    elif damage == "empty":
        shapes.write_bytes(b"")
    elif damage == "gone":
        pixels.unlink()
    else:
        np.save(shapes, np.ones((24, 3), np.int32))
    said = []
    again = stored(benchmark.train, whole, said.append)
    assert len(said) == 1 and "decoding" in said[0]
    assert again[3][0].tobytes() == expected
    assert left_in(root) == [folder.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ImageError])
def test_an_interrupted_build_leaves_nothing(benchmark, whole, root, monkeypatch, error):
    original, seen = FileOpener.__call__, []

    def interrupted(self, name):
        seen.append(name)
        if len(seen) > 30:  # past the sample
            raise error
        return original(self, name)

    monkeypatch.setattr(FileOpener, "__call__", interrupted)
    before = threading.active_count()
    with pytest.raises(error):
        stored(benchmark.train, whole)
    assert left_in(root) == []
    assert threading.active_count() == before


def test_what_a_killed_build_left_is_removed_and_that_of_a_living_one_is_not(
    benchmark, whole, root
):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    host = os.uname().nodename
    dead, living = root / f".part-{host}@{process.pid}", root / f".part-{host}@{os.getppid()}"
    for part in (dead, living):
        part.mkdir(parents=True)
        (part / "pixels.u8").write_bytes(b"half")
    stored(benchmark.train, whole)
    assert not dead.exists() and living.exists()


def test_of_two_that_build_at_once_the_second_takes_what_the_first_made(
    benchmark, whole, root, monkeypatch
):
    write = bpt.pixels._write

    def overtaken(part, *rest):
        write(part, *rest)
        monkeypatch.undo()
        monkeypatch.setenv("BPT_CACHE", str(root))
        shutil.copytree(part, root / stored_name)

    stored_name = f"{benchmark.train.opener.place.name}-{whole.key(benchmark.train)[:32]}"
    monkeypatch.setattr(bpt.pixels, "_write", overtaken)
    assert stored(benchmark.train, whole)[0][0].size == (20, 16)
    assert left_in(root) == [stored_name]


def test_of_two_that_start_at_once_one_decodes_and_the_other_waits(
    benchmark, whole, root, monkeypatch
):
    write, waits, said, built = bpt.pixels._write, threading.Event(), [], []

    def slow(*args):
        built.append(args)
        assert waits.wait(20)
        write(*args)

    def say(line):
        if line.startswith("waiting"):
            said.append(line)
            waits.set()

    monkeypatch.setattr(bpt.pixels, "_write", slow)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(stored, benchmark.train, whole, say) for _ in range(2)]
    assert [one.result()[0][0].size for one in both] == [(20, 16)] * 2
    assert len(built) == len(said) == 1
    (folder,) = root.iterdir()
    assert said == [f"waiting for another process that decodes images into {folder}"]


def test_a_finished_cache_is_read_where_nothing_can_be_written(benchmark, whole, monkeypatch):
    first = stored(benchmark.train, whole)
    monkeypatch.setattr(bpt.cache, "one_at_a_time", lambda *_, **__: pytest.fail("it writes"))
    assert stored(benchmark.train, whole)[3][0].tobytes() == first[3][0].tobytes()


def test_a_folder_that_cannot_be_written_is_gone_without(benchmark, whole, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BPT_CACHE", str(tmp_path / "file" / "cache"))
    said = []
    assert stored_pixels(benchmark.train, whole, say=said.append) is None
    assert len(said) == 1 and "Not a directory" in said[0]


def test_a_tenth_of_the_free_space_is_left_alone(benchmark, whole, root, monkeypatch):
    size = 24 * 20 * 16 * 3
    usage = shutil.disk_usage(root.parent)
    for free, fits in ((size, False), (size / 0.8, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        said = []
        found = stored_pixels(benchmark.train, whole, say=said.append)
        assert (found is not None) == fits
        assert len(said) == 1 and ("decoded again each time" in said[0]) != fits


def test_a_disk_that_fills_up_is_gone_without(benchmark, whole, root, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    said = []
    assert stored_pixels(benchmark.train, whole, say=said.append) is None
    assert "No space left" in said[-1]
    assert left_in(root) == []


def test_a_broken_image_is_named_and_leaves_nothing(own, whole, root):
    place, opened = own
    (place / "train" / "red" / "5.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(ImageError, match=r"train/red/5\.png"):
        stored(opened(), whole)
    assert left_in(root) == []


def test_where_the_cache_is(monkeypatch, tmp_path, root):
    assert cache_root() == root
    monkeypatch.delenv("BPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "bpt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "bpt"


# --- in a training ---


def recipe_for(colours, **changes):
    settings = {"dataset": "folder", "data": str(colours), "batch_size": 8, "epochs": 2}
    return Recipe(**settings | changes)


def test_all_folds_share_one_file(benchmark, whole):
    folds = [fold_of(benchmark, f"{number}/3") for number in (1, 2, 3)]
    orders = [all_training_images(fold).names for fold in folds]
    assert len(set(orders)) == 3
    assert len({whole.key(all_training_images(fold)) for fold in folds}) == 1


def test_a_second_fold_decodes_nothing_anew(colours, benchmark, backbone, root):
    said, kept = [], []
    for number in (1, 2):
        recipe = recipe_for(colours, fold=f"{number}/3")
        fold = fold_of(benchmark, recipe.fold)
        images = ImageBatches(recipe, fold, backbone, fold.train, say=said.append)
        images.keep_pixels()
        assert isinstance(images.split.opener, Pixels)
        kept.append((list(said), left_in(root)))
    assert kept[0] == kept[1] and kept[0][0]


def test_a_training_keeps_what_it_reads_each_time(colours, benchmark, backbone):
    said = []
    images = ImageBatches(
        recipe_for(colours), benchmark, backbone, benchmark.train, say=said.append
    )
    images.keep_pixels()
    assert isinstance(images.split.opener, Pixels)
    assert [line.split()[1] for line in said] == ["24", "9"]  # to train on, and val
    plain = ImageBatches(recipe_for(colours, cache=False), benchmark, backbone, benchmark.train)
    plain.keep_pixels()
    assert plain.split is benchmark.train
    for split in ("val", "test"):
        assert same(list(images.evaluation(split)), list(plain.evaluation(split)))
    assert len(list(images.train(0, 0))) == len(list(plain.train(0, 0))) == 3


def test_the_authors_protocol_reads_the_test_split_each_time(colours, benchmark, backbone):
    said, train = [], benchmark.train + benchmark.val
    recipe = recipe_for(colours, protocol="authors")
    ImageBatches(recipe, benchmark, backbone, train, say=said.append).keep_pixels()
    assert [line.split()[1] for line in said] == ["33", "12"]


@pytest.mark.parametrize("changes", [{"cache": False}, {"epochs": 1}])
def test_nothing_is_kept_that_would_not_be_read_again(colours, benchmark, backbone, root, changes):
    recipe = recipe_for(colours, **changes)
    ImageBatches(recipe, benchmark, backbone, benchmark.train).keep_pixels()
    assert left_in(root) == []


def test_digits_are_in_memory_as_they_are(backbone, root):
    digits = open_dataset("digits")
    images = ImageBatches(Recipe(batch_size=8, epochs=2), digits, backbone, digits.train)
    images.keep_pixels()
    assert images.split is digits.train
    assert left_in(root) == []


def test_processes_share_the_cores_but_one_that_decodes_for_all_has_them_alone(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(32))
    assert threads() == threads(alone=True) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert (threads(), threads(alone=True)) == (4, 16)
