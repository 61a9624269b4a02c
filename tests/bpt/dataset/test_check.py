"""A check says what differs from what is published, and which images cannot be read."""

import dataclasses

import layouts

from bpt import check_dataset, dataset_info, download_dataset, locate, open_dataset


def test_a_complete_copy_is_good(tmp_path):
    layouts.cub(tmp_path)
    info = dataclasses.replace(dataset_info("cub"), classes=3, sizes=(10, 2, 6))
    steps = []
    found = check_dataset(info, open_dataset("cub", tmp_path), progress=lambda *s: steps.append(s))
    assert found.good and found.sizes == (10, 2, 6) and found.classes == 3
    assert steps == [(done, 18) for done in range(1, 19)]


def test_missing_classes_and_images_are_counted(tmp_path):
    layouts.cub(tmp_path)
    found = check_dataset(dataset_info("cub"), open_dataset("cub", tmp_path))
    assert not found.good
    assert found.mismatches == (
        "10 train images instead of 5,394",
        "2 val images instead of 600",
        "6 test images instead of 5,794",
        "3 classes instead of 200",
    )


def test_every_image_that_cannot_be_read_is_named(tmp_path):
    base = layouts.cub(tmp_path)
    paths = sorted(base.rglob("*.jpg"))
    paths[3].write_bytes(b"")
    paths[7].write_bytes(paths[7].read_bytes()[:200])
    found = check_dataset(dataset_info("cub"), open_dataset("cub", tmp_path))
    assert len(found.unreadable) == 2
    for path in (paths[3], paths[7]):
        assert any(path.name in problem for problem in found.unreadable)


def test_a_dataset_is_found_packed_or_not_without_unpacking_it(tmp_path):
    info = dataset_info("cub")
    assert locate(info, tmp_path)[0] is None and tmp_path in locate(info, tmp_path)[1]
    layouts.cub(tmp_path / "made")
    place = tmp_path / "cub"
    place.mkdir()
    archive = layouts.pack(tmp_path / "made", place / "CUB_200_2011.tgz", names=("CUB_200_2011",))
    assert locate(info, tmp_path)[0] == archive
    assert [path.name for path in place.iterdir()] == [archive.name]
    open_dataset("cub", tmp_path)
    assert locate(info, tmp_path)[0] == place / "CUB_200_2011"


def test_a_download_is_unpacked_and_opens(tmp_path, monkeypatch):
    from bpt.dataset import registry

    layouts.cub(tmp_path / "made")

    def fetched(file, folder, **_):  # the transfer itself is tested in test_download.py
        folder.mkdir(parents=True)
        return layouts.pack(tmp_path / "made", folder / file.name, names=("CUB_200_2011",))

    monkeypatch.setattr(registry, "fetch", fetched)
    place = download_dataset(dataset_info("cub"), tmp_path / "data")
    assert open_dataset("cub", tmp_path / "data").digest == open_dataset("cub", place).digest
