"""A CSV of labels beside images, as spreadsheets and competitions write it."""

import unicodedata

import numpy as np
import pytest
from own_photos import class_folders, flat, photo

from bpt import open_dataset
from bpt.dataset.labels_file import by_labels
from burst import ImageError

SPLITS = ("train", "val", "test")


def labelled(found):
    """File -> class, over all splits."""
    splits = [getattr(found, kind) for kind in SPLITS]
    return {
        name: found.classes[label]
        for split in splits
        for name, label in zip(split.names, split.labels, strict=True)
    }


def write(path, rows, *, header=("filename", "label"), delimiter=",", encoding="utf-8"):
    lines = [delimiter.join(row) for row in ([header] if header else []) + list(rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """images/, and rows that say what lies there."""
    root = tmp_path_factory.mktemp("flat")
    return root, flat(root, 6)


@pytest.fixture
def folder(images):
    """The folder and rows; the tables that a test writes there go with it."""
    root, rows = images
    yield root, rows
    for table in (*root.glob("*.?sv"), *root.glob("images/*.?sv")):
        table.unlink()


EXPECTED = {"0": "blue", "1": "green", "2": "red"}


def right(found, prefix="images/"):
    """Whether all 18 have the class that was painted."""
    have = labelled(found)
    return len(have) == 18 and all(
        EXPECTED[name.removeprefix(prefix)[0]] == one for name, one in have.items()
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header",
    [
        *(("filename", "label"), ("Image", "Class"), ("path", "category"), ("id", "target")),
        *(("file", "labels"), ("image_id", "class_name"), ("NAME", "label"), None),
        ("File Name", "Class Label"),
    ],
)
def test_columns_are_found_by_what_they_are_called_or_by_their_order(folder, header, delimiter):
    root, rows = folder
    write(root / "labels.csv", rows, header=header, delimiter=delimiter)
    assert right(open_dataset("folder", root))


@pytest.mark.parametrize(
    "name",
    [
        lambda one: one,
        lambda one: one.removesuffix(".png"),
        lambda one: f"images/{one}",
        lambda one: f"./images/{one}",
        lambda one: f"images\\{one.upper()}",
        lambda one: f"/home/me/flat/images/{one}",
        lambda one: f"flat/images/{one.removesuffix('.png')}",
    ],
)
def test_a_file_is_named_by_its_path_or_the_end_of_it(folder, name):
    root, rows = folder
    write(root / "labels.csv", [(name(file), label) for file, label in rows])
    assert right(open_dataset("folder", root))


def test_of_full_paths_no_ends_are_kept(folder, monkeypatch):
    root, rows = folder
    write(root / "labels.csv", [(f"images/{file}", label) for file, label in rows])
    monkeypatch.delattr("bpt.dataset.labels_file._plain")  # which all ends are made with
    assert right(open_dataset("folder", root))


@pytest.mark.parametrize("given", ["folder:{0}", "folder:{0}/labels.csv", "folder:{0}/images"])
def test_the_table_is_found_or_given(folder, given):
    root, rows = folder
    inside = given.endswith("images")
    table = root / "images" / "my.csv" if inside else root / "labels.csv"
    write(table, rows)
    found = open_dataset(given.format(root))
    assert right(found, "" if inside else "images/")
    assert found.source == str(table)
    assert found.about["split"]["by"] == "name, class by class"


def test_of_several_tables_one_must_be_said(folder):
    root, rows = folder
    write(root / "a.csv", rows)
    write(root / "b.csv", rows)
    with pytest.raises(ImageError, match=r"2 tables: a\.csv, b\.csv; say which .* folder:"):
        open_dataset("folder", root)
    assert right(open_dataset(f"folder:{root}/b.csv"))


def test_a_column_says_the_splits(folder):
    root, rows = folder
    kinds = ["train", "Training", "train", "valid", "TEST", "test"]
    split = [(*row, kinds[number % 6]) for number, row in enumerate(rows)]
    write(root / "labels.csv", split, header=("filename", "label", "Split"))
    named = open_dataset("folder", root)
    assert [len(getattr(named, kind)) for kind in SPLITS] == [9, 3, 6]
    write(root / "labels.csv", split, header=None)
    assert open_dataset("folder", root).digest == named.digest


def test_without_a_column_of_splits_folders_called_so_say_them(tmp_path):
    rows = []
    for split, count in (("train", 5), ("test", 2)):
        for number in range(count * 2):
            photo(tmp_path / split / f"{split}{number}.png", 100 * len(split) + number)
            rows.append((f"{split}{number}.png", "ab"[number % 2]))
    write(tmp_path / "labels.csv", rows)
    found = open_dataset("folder", tmp_path)
    assert {name.split("/")[0] for name in found.test.names} == {"test"}
    assert [len(getattr(found, kind)) for kind in SPLITS] == [9, 1, 4]


def test_numbers_stay_names_and_classes_are_sorted(folder):
    root, rows = folder
    numbers = {"blue": "10", "green": "007", "red": "2"}
    write(root / "labels.csv", [(file, numbers[label]) for file, label in rows])
    assert open_dataset("folder", root).classes == ("007", "10", "2")


def test_spreadsheets_marks_quotes_and_blank_lines_are_read(folder):
    root, rows = folder
    text = "".join(f'\r\n"{file}" ; "Bär; {label}"' for file, label in rows)
    text = text.replace('" ; "', '";"')
    (root / "labels.csv").write_bytes(
        ("filename;label" + text + "\r\n;\r\n\r\n").encode("utf-8-sig")
    )
    assert open_dataset("folder", root).classes == ("Bär; blue", "Bär; green", "Bär; red")


def test_images_that_the_table_does_not_name_are_left_out_and_said(folder):
    root, rows = folder
    write(root / "labels.csv", [row for row in rows if not row[0].endswith("05.png")])
    told = []
    found = open_dataset("folder", root, say=told.append)
    assert len(labelled(found)) == 15
    assert any("labels.csv does not name, 3, such as 'images/0_05.png'" in one for one in told)


def test_a_line_that_says_the_same_again_does_no_harm(folder):
    root, rows = folder
    write(root / "labels.csv", [*rows, rows[0]])
    assert right(open_dataset("folder", root))


def test_folders_of_classes_win_over_a_table_of_other_things(tmp_path):
    class_folders(tmp_path, 4, ("cat", "dog"))
    write(tmp_path / "sizes.csv", [("cat/img_1.png", "20")], header=("filename", "width"))
    assert open_dataset("folder", tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize("content", [b"", b'a,"b\n', "filename,label\n1,B\u00e4r".encode("cp1252")])
def test_a_table_that_cannot_be_read_does_not_hide_folders_of_classes(tmp_path, content):
    class_folders(tmp_path, 4, ("cat", "dog"))
    (tmp_path / "notes.csv").write_bytes(content)
    assert open_dataset("folder", tmp_path).classes == ("cat", "dog")


def test_a_table_of_labels_wins_over_folders_of_parts(tmp_path):
    rows = []
    for part in (1, 2):
        for number in range(8):
            photo(tmp_path / f"part_{part}" / f"{part}_{number}.png", 10 * part + number)
            rows.append((f"{part}_{number}", ("mole", "naevus")[number % 2]))
    write(tmp_path / "labels.csv", rows, header=("image_id", "label"))
    assert open_dataset("folder", tmp_path).classes == ("mole", "naevus")


@pytest.mark.parametrize(
    "rows, header, says",
    [
        ([("nothing.png", "x")], True, r"line 20, column 'filename': no image 'nothing.png'"),
        ([("0_00.png", "red")], True, r"line 20: '0_00.png' is 'red', and 'blue' in line 2"),
        ([("0_00.png", "")], True, r"line 20, column 'label' is empty"),
        ([("0_00.png", "x", "y")], True, r"line 20: 3 columns instead of 2"),
        ([("nothing", "x")], False, r"line 19, column 1: no image 'nothing'"),
        ([('"0_00.png', "x")], True, r"line 20: unexpected end of data"),
    ],
)
def test_a_wrong_line_is_named_with_its_column(folder, rows, header, says):
    root, good = folder
    write(root / "labels.csv", [*good, *rows], header=("filename", "label") if header else None)
    with pytest.raises(ImageError, match=says) as caught:
        open_dataset("folder", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "is empty"),
        ("filename,label\n", "no line below"),
        (
            "filename,species\n0_00.png,x\n",
            "no column of labels among filename, species; call it label, or leave this line out",
        ),
        ("a,b,c,d\n0_00.png,x,y,z\n", "no column of files among a, b, c, d; call it filename$"),
        (
            "picture_file,species\n0_00.png,x\n",
            "line 1, column 1: no image 'picture_file' .* if it is a header, call the files filen",
        ),
        ("gone_1,x\ngone_2,y\n", "line 1, column 1: no image 'gone_1' lies there$"),
        ("filename,label\n0_00.png,x\n", "has one label, 'x'"),
        ("filename,label,split\n0_00.png,x,3\n", "column 'split': '3' is no split"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(folder, text, says):
    root, _ = folder
    (root / "labels.csv").write_text(text)
    with pytest.raises(ImageError, match=says):
        open_dataset(f"folder:{root}/labels.csv")


def test_another_encoding_is_told(folder):
    root, rows = folder
    write(root / "labels.csv", [(rows[0][0], "Bär")], encoding="cp1252")
    with pytest.raises(ImageError, match="not in UTF-8"):
        open_dataset("folder", root)


def test_a_name_that_two_images_have_is_asked_for_with_its_path(tmp_path):
    for part in ("a", "b"):
        photo(tmp_path / "all" / part / "1.png", ord(part))
    write(tmp_path / "labels.csv", [("1.png", "x"), ("a/1.png", "y")])
    with pytest.raises(ImageError, match=r"line 2, .* may be all/a/1.png and all/b/1.png"):
        open_dataset(f"folder:{tmp_path}/labels.csv")


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_the_other_form_of_unicode_are_found(tmp_path, form, other):
    rows = [(f"Bär ü{number}.png", "ab"[number % 2]) for number in range(8)]
    for number, (name, _) in enumerate(rows):
        photo(tmp_path / unicodedata.normalize(form, name), number)
    write(tmp_path / "labels.csv", [(unicodedata.normalize(other, n), one) for n, one in rows])
    found = labelled(open_dataset("folder", tmp_path))
    assert {unicodedata.normalize("NFC", name): one for name, one in found.items()} == dict(rows)


def test_another_folders_image_is_not_meant(tmp_path):
    names = ["all/dogs/1.png", "all/wolves/2.png", "all/wolves/3.png"]
    table = tmp_path / "labels.csv"
    write(table, [("cats/1.png", "cat"), ("wolves/2.png", "wolf")])
    with pytest.raises(ImageError, match=r"no image 'cats/1.png' lies there"):
        by_labels(names, table)
    write(table, [("/old/place/dogs/1.png", "dog"), ("all/wolves/2.png", "wolf"), ("3", "wolf")])
    assert by_labels(names, table).classes == dict(zip(names, ("dog", "wolf", "wolf"), strict=True))


def test_pixels_are_those_of_the_named_file(folder):
    root, rows = folder
    write(root / "labels.csv", rows)
    found = open_dataset("folder", root)
    from PIL import Image

    with Image.open(root / found.train.names[3]) as image:
        assert np.array_equal(np.asarray(found.train[3][0]), np.asarray(image))
