"""One's own photos and VTAB from the command line: what is typed, and what the files say then."""

import csv
import json
import shutil

import pytest
from colours import write_images
from own_photos import class_folders, flat, photo, vtab_task
from typer.testing import CliRunner

import bpt
import bpt.search.recipes
from bpt import Recipe
from bpt.batches import fitted
from bpt.dataset.by_name import SHARES
from cli import bpt as command

LINEAR = ("--method", "linear", "--epochs", "1", "--batch-size", "4", "--device", "cpu")
MODEL = ("--model", "mae_tiny")
GRID = ("--lrs", "0.1", "--weight-decays", "0.002", "--max-trials", "1", "--seeds", "0")
SEARCH = ("--methods", "linear", "--processes", "1", *GRID)
PROMPTED = (*MODEL, "--placement", "last:1", "--num-prompts", "4", "--rank", "2", "--epochs", "1")


def run(*arguments):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def succeeded(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith("error: ")
    return result.stderr.splitlines()[-1]


def config(out):
    return json.loads((out / "config.json").read_text())


@pytest.fixture
def _a_short_probe(monkeypatch):
    monkeypatch.setattr(bpt.search.recipes, "LEAST_OF_PROBE", 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("mine") / "photos")


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    return out, succeeded("train", f"folder:{photos}", *LINEAR, "--out", out)


def test_folders_of_classes_train_and_their_split_is_said_and_recorded(trained, photos):
    out, result = trained
    about = config(out)["dataset"]
    assert sum(about[kind] for kind in SHARES) == 36
    assert about["classes"] == ["blue", "green", "red"]
    assert about["split"] == {"by": "name, class by class", "shares": SHARES}
    said = f"{about['train']} to train, {about['val']} to validate, {about['test']} to test"
    assert said in result.stderr and said in about["notes"][-1]
    assert bpt.open_run(out).result["test_images"] == about["test"]


def test_a_photo_is_classified_by_the_names_of_the_folders(trained, tmp_path):
    path = photo(tmp_path / "new.png", 77, "red")
    found = json.loads(succeeded("predict", trained[0], path, "--device", "cpu", "--json").stdout)
    assert {one["name"] for one in found[0]["classes"]} == {"blue", "green", "red"}


def test_every_method_and_seed_sees_the_same_split(trained, photos, tmp_path):
    options = (*PROMPTED, "--batch-size", "4", "--device", "cpu", "--seed", "3")
    succeeded("train", f"folder:{photos}", *options, "--out", tmp_path / "run")
    assert config(tmp_path / "run")["dataset"] == config(trained[0])["dataset"]


def test_a_run_is_not_gone_on_with_when_a_photo_came_and_is_found_where_it_moved(
    trained, photos, tmp_path
):
    out = shutil.copytree(trained[0], tmp_path / "run")
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    scores = ("evaluate", out, "--data", moved, "--device", "cpu", "--json")
    assert json.loads(succeeded(*scores).stdout)["images"] == config(out)["dataset"]["test"]
    photo(moved / "red" / "new.png", 78, "red")
    assert "holds other images" in refused(*scores)
    where = ("train", f"folder:{photos}", *LINEAR, "--out", out, "--resume")
    succeeded(*where)
    new = photo(photos / "red" / "new.png", 78, "red")
    try:
        assert "other images" in refused(*where)
    finally:
        new.unlink()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("flat")
    with (root / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("filename", "label"), *flat(root, 8)])
    return root / "labels.csv"


@pytest.mark.parametrize("given", ["parent", "table"])
def test_images_with_a_csv_of_labels_train(table, given, tmp_path):
    place = table if given == "table" else table.parent
    succeeded("train", f"folder:{place}", *LINEAR, "--out", tmp_path / "run")
    about = config(tmp_path / "run")["dataset"]
    assert about["source"] == str(table) and about["classes"] == ["blue", "green", "red"]
    assert sum(about[kind] for kind in SHARES) == 24
    new = photo(tmp_path / "new.png", 5, "blue")
    found = json.loads(
        succeeded("predict", tmp_path / "run", new, "--device", "cpu", "--json").stdout
    )
    assert len(found[0]["classes"]) == 3


def test_a_wrong_line_of_labels_ends_a_training_with_its_place(table, tmp_path):
    root = shutil.copytree(table.parent, tmp_path / "flat")
    with (root / "labels.csv").open("a") as file:
        file.write("gone.png,red\n")
    said = refused("train", f"folder:{root}", *LINEAR, "--out", tmp_path / "run")
    assert "labels.csv, line 26, column 'filename': no image 'gone.png'" in said
    assert not (tmp_path / "run").exists()


def test_a_split_without_test_is_trained_and_tested_on_val(tmp_path):
    for split, count in (("training", 10), ("valid", 3)):
        for place, name in enumerate(("cat", "dog")):
            for number in range(count):
                seed = 1000 * count + 100 * place + number
                photo(tmp_path / "mine" / split / name / f"{number}.png", seed)
    succeeded("train", f"folder:{tmp_path / 'mine'}", *LINEAR, "--out", tmp_path / "run")
    about = config(tmp_path / "run")["dataset"]
    assert [about[kind] for kind in SHARES] == [18, 2, 6]
    assert about["split"] == {"by": "given", "tested_on": "val"}


@pytest.mark.slow
@pytest.mark.usefixtures("_a_short_probe")
def test_a_search_validates_on_folds_of_ones_own_photos(photos, tmp_path):
    options = (*SEARCH, "--folds", "2")
    shared = ("--epochs", "1", "--batch-size", "4", "--devices", "cpu", "--out", tmp_path / "s")
    succeeded("search", f"folder:{photos}", *options, *shared)
    record = json.loads((tmp_path / "s" / "search.json").read_text())
    assert record["validation"]["folds"] == 2 and record["methods"][0]["method"] == "linear"


def test_a_check_says_how_photos_are_split(photos):
    result = succeeded("datasets", "--check", f"folder:{photos}")
    assert "split by name" in " ".join(result.stdout.split())
    assert "every image can be read" in result.stdout


# --- VTAB ---------------------------------------------------------------------------------------


def test_a_default_batch_is_no_larger_than_the_training_images(tmp_path):
    folder = f"folder:{class_folders(tmp_path / 'photos', count=5)}"
    out = tmp_path / "run"
    command = ("train", folder, *PROMPTED, "--device", "cpu", "--out", out)
    plan = json.loads(succeeded(*command, "--dry-run", "--json").stdout)
    said = succeeded(*command).stderr
    images = config(out)["dataset"]["train"]
    assert 1 < images < 32 and (plan["steps"], plan["images"][0]) == (1, images)
    assert config(out)["recipe"]["batch_size"] == plan["recipe"]["batch_size"] == images
    assert f"batch_size {images}: there are {images} training images, too few for 32" in said
    assert "already holds" in refused(*command)
    succeeded(*command, "--resume")
    again = tmp_path / "again"
    error = refused(*command[:-1], again, "--batch-size", "32")
    assert f"{images} training images are fewer than a batch of 32" in error


@pytest.mark.parametrize("options", [LINEAR, PROMPTED], ids=["linear", "prompts"])
def test_without_an_image_to_validate_on_nothing_begins(tmp_path, options):
    photos = write_images(tmp_path / "photos", {"train": 1, "test": 4})
    command = (
        "train",
        f"folder:{photos}",
        *options,
        "--batch-size",
        "3",
        "--out",
        tmp_path / "run",
    )
    errors = {refused(*command), refused(*command, "--dry-run")}
    assert len(errors) == 1 and "give more images, or --protocol last" in errors.pop()
    assert not (tmp_path / "run").exists()
    succeeded(*command, "--protocol", "last")


def test_a_default_batch_divides_as_accumulation_and_mixing_ask():
    recipe = Recipe(accumulation=4, mixup=0.8)
    assert [fitted(recipe, images).batch_size for images in (31, 19, 4)] == [28, 16, 4]
    assert fitted(recipe, 3) is fitted(recipe, 0) is fitted(recipe, 32) is recipe
    chosen = bpt.make_recipe("digits", batch_size=32)
    assert fitted(chosen, 5) is chosen


@pytest.fixture(scope="module")
def vtab(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    vtab_task(root / "vtab-1k", "kitti", classes=4, train=16)
    return root


def test_a_task_of_vtab_trains_on_its_lists_and_the_record_names_the_version(vtab, tmp_path):
    where = ("--data", vtab, "--out", tmp_path / "run")
    result = succeeded("train", "vtab:kitti", *MODEL, *LINEAR, *where)
    found = config(tmp_path / "run")
    about, backbone = found["dataset"], found["backbone"]
    assert [about[kind] for kind in SHARES] == [16, 4, 6]
    assert about["name"] == "vtab:kitti" and about["group"] == "structured"
    assert about["version"].startswith("pictures, JPEG") and "JPEG" in result.stderr
    assert found["recipe"]["augmentation"] == "none"
    assert (backbone["crop_fraction"], backbone["crop_mode"]) == (1.0, "squash")
    assert found["recipe"]["normalisation"] == "native" and len(backbone["mean"]) == 3
    again = bpt.open_run(tmp_path / "run").load_backbone()
    assert (again.crop_fraction, again.crop_mode) == (1.0, "squash")
    scores = succeeded("evaluate", tmp_path / "run", "--device", "cpu", "--json").stdout
    assert json.loads(scores)["accuracy"] == bpt.open_run(tmp_path / "run").result["test_accuracy"]
    path = vtab / "vtab-1k/kitti/images/test/000000.jpg"
    predicted = succeeded("predict", tmp_path / "run", path, "--device", "cpu", "--json").stdout
    assert {one["name"] for one in json.loads(predicted)[0]["classes"]} <= set("0123")


@pytest.mark.parametrize("protocol", ["authors", "last"])
def test_the_other_protocols_train_on_all_that_vtab_lists(vtab, protocol, tmp_path, monkeypatch):
    seen = []
    fit = bpt.configuration.all_training_images

    def watched(benchmark):
        images = fit(benchmark)
        seen.append(len(images))
        return images

    monkeypatch.setattr(bpt.configuration, "all_training_images", watched)
    where = ("--data", vtab, "--out", tmp_path / "run", "--protocol", protocol)
    succeeded("train", "vtab:kitti", *PROMPTED, "--batch-size", "4", "--device", "cpu", *where)
    assert seen == [20]


def test_folders_of_two_tasks_have_names_of_their_own(vtab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    succeeded("train", "vtab:kitti", *MODEL, *LINEAR, "--data", vtab)
    assert (tmp_path / "runs" / "vtab-kitti-mae_tiny-linear-seed0").is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("_a_short_probe")
def test_a_study_and_a_search_take_a_task(vtab, tmp_path):
    shared = (*MODEL, "--data", vtab, "--out", tmp_path / "s", "--epochs", "1", "--devices", "cpu")
    succeeded("search", "vtab:kitti", *SEARCH, "--batch-size", "4", *shared)
    run = bpt.open_run(next((tmp_path / "s").rglob("config.json")).parent)
    assert run.recipe.augmentation == "none" and run.config["dataset"]["name"] == "vtab:kitti"
    plan = succeeded("study", "variants", "--dataset", "vtab:kitti", "--data", vtab, "--dry-run")
    assert "vtab" in plan.stdout


def test_without_a_task_or_a_place_one_is_told_what_to_type(vtab, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    assert "say which: vtab:caltech101" in refused("train", "vtab", "--data", vtab)
    assert "vtab-1k/svhn/ with train800.txt" in refused("train", "vtab:svhn", "--data", vtab)
    assert "folder:photos" in refused("train", "photos")


def test_the_lists_of_datasets_count_the_tasks_on_disk_and_say_who_hosts_them(vtab):
    table = succeeded("datasets", "--data", vtab).stdout
    [line] = [line for line in table.splitlines() if line.startswith("vtab")]
    assert "by task" in line and line.rstrip().endswith("1 of 19")
    told = " ".join(succeeded("datasets", "vtab").stdout.split())
    assert "vtab:cifar, " in told and "XiN0919/VTAB-1k; not checked by us" in told
    record = next(
        one for one in json.loads(succeeded("datasets", "--json").stdout) if one["name"] == "cars"
    )
    assert record["copies"] == ["huggingface.co/datasets/XiN0919/FGVC"]
