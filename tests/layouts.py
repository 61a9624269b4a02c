"""Small copies of the benchmarks, in the layout that their makers publish."""

import tarfile
import uuid

import numpy as np
import scipy.io
from PIL import Image


def write_jpeg(path, number, size=(24, 18)):
    """A JPEG whose mean colour tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (40 + 7 * number % 160, 60, 200 - 7 * number % 160)
    Image.new("RGB", size, colour).save(path, "JPEG")


def pack(folder, archive, *, names, mode="w:gz"):
    """Some of a folder's content as a tar."""
    with tarfile.open(archive, mode) as tar:
        for name in names:
            tar.add(folder / name, name)
    return archive


def cub(root, *, classes=3, train=4, test=2):
    """CUB_200_2011/ in root."""
    base = root / "CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"][:classes]
    lines = {"images": [], "image_class_labels": [], "train_test_split": []}
    number = 0
    for class_id, name in enumerate(names, 1):
        for index in range(train + test):
            number += 1
            path = f"{name}/{name[4:]}_{number:04d}_{number * 13}.jpg"
            write_jpeg(base / "images" / path, number)
            lines["images"].append(f"{number} {path}")
            lines["image_class_labels"].append(f"{number} {class_id}")
            lines["train_test_split"].append(f"{number} {int(index < train)}")
    lines["classes"] = [f"{number} {name}" for number, name in enumerate(names, 1)]
    _write(base, lines)
    (root / "attributes.txt").write_text("1 has_bill_shape::curved_(up_or_down)\n")
    return base


def nabirds(root, *, train=4, test=2):
    """nabirds/ in root: leaves with gaps in their ids, and an inner node without images."""
    base = root / "nabirds"
    classes = {"0": "Birds", "817": "Red-tailed Hawk (Light morph adult)", "9": "Common Eider"}
    lines = {"images": [], "image_class_labels": [], "train_test_split": []}
    number = 0
    for class_id in ("817", "9"):
        for index in range(train + test):
            number += 1
            image = str(uuid.UUID(int=number))
            path = f"{int(class_id):04d}/{image.replace('-', '')}.jpg"
            write_jpeg(base / "images" / path, number)
            lines["images"].append(f"{image} {path}")
            lines["image_class_labels"].append(f"{image} {class_id}")
            lines["train_test_split"].append(f"{image} {int(index < train)}")
    lines["classes"] = [f"{number} {name}" for number, name in classes.items()]
    lines["hierarchy"] = ["817 0", "9 0"]
    _write(base, lines)
    return base


def _write(base, lines):
    for name, content in lines.items():
        (base / f"{name}.txt").write_text("\n".join(content) + "\n")


def flowers(root):
    """jpg/, imagelabels.mat and setid.mat: 9 images of 3 classes, a third in each split."""
    labels = np.array([3, 1, 2, 2, 3, 1, 1, 2, 3], np.uint8)
    for number in range(1, 10):
        write_jpeg(root / "jpg" / f"image_{number:05d}.jpg", number)
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels[None]})
    sets = {"trnid": [[1, 2, 3]], "valid": [[4, 5, 6]], "tstid": [[9, 8, 7]]}
    scipy.io.savemat(root / "setid.mat", {k: np.array(v, np.uint16) for k, v in sets.items()})
    return root


def _cells(names):
    cells = np.empty((len(names), 1), object)
    cells[:, 0] = names
    return cells


def dogs(root, *, train=4, test=2):
    """Images/, train_list.mat and test_list.mat."""
    lists = {"train": ([], []), "test": ([], [])}
    for class_id, folder in enumerate(["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], 1):
        for index in range(train + test):
            path = f"{folder}/{folder[:9]}_{index + 7}.jpg"
            write_jpeg(root / "Images" / path, 10 * class_id + index)
            names, labels = lists["train" if index < train else "test"]
            names.append(path)
            labels.append(class_id)
    for kind, (names, labels) in lists.items():
        content = {
            "file_list": _cells(names),
            "annotation_list": _cells([name.removesuffix(".jpg") for name in names]),
            "labels": np.array(labels, np.uint8)[:, None],
        }
        scipy.io.savemat(root / f"{kind}_list.mat", content)
    return root


CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Audi R8 Coupe 2012"]
BOXES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def _struct(rows):
    """A MATLAB struct array, 1 x n."""
    kinds = [(name, object) for name in rows[0]]
    found = np.empty((1, len(rows)), kinds)
    for place, row in enumerate(rows):
        for name, value in row.items():
            found[0, place][name] = value
    return found


def cars_rows(train=4, test=2):
    """What both layouts say: class, split, box and number in either, and the image's number."""
    rng = np.random.default_rng(0)
    rows = [
        {"class": class_id, "test": int(index >= train)}
        for class_id in range(1, len(CARS) + 1)
        for index in range(train + test)
    ]
    for number, row in enumerate(rows, 1):
        row["combined"] = f"car_ims/{number:06d}.jpg"
        row["number"] = number
        row.update(dict(zip(BOXES, (5, 6, 10 + number, 20 + 2 * number), strict=True)))
    counts = {0: 0, 1: 0}
    for place in rng.permutation(len(rows)):  # the devkit's order is another
        row = rows[place]
        counts[row["test"]] += 1
        row["fname"] = f"{counts[row['test']]:05d}.jpg"
    return rows


def cars_combined(root, *, images=True):
    """car_ims/ and cars_annos.mat."""
    rows = cars_rows()
    if images:
        for row in rows:
            write_jpeg(root / row["combined"], row["number"])
    keep = ("relative_im_path", *BOXES, "class", "test")
    found = [row | {"relative_im_path": row["combined"]} for row in rows]
    annotations = _struct([{name: row[name] for name in keep} for row in found])
    names = np.array([CARS], object)
    root.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(root / "cars_annos.mat", {"annotations": annotations, "class_names": names})
    return rows


def cars_devkit(root, *, doubled=False):
    """cars_train/, cars_test/ and devkit/, as torchvision expects it; or doubled, as on Kaggle."""
    rows = cars_rows()
    (root / "devkit").mkdir(parents=True, exist_ok=True)
    for test, kind in enumerate(("train", "test")):
        mine = sorted((row for row in rows if row["test"] == test), key=lambda row: row["fname"])
        folder = root / f"cars_{kind}"
        for row in mine:
            write_jpeg((folder / folder.name if doubled else folder) / row["fname"], row["number"])
        annotations = _struct(
            [{name: row[name] for name in (*BOXES, "class", "fname")} for row in mine]
        )
        file = "devkit/cars_train_annos.mat" if not test else "cars_test_annos_withlabels.mat"
        scipy.io.savemat(root / file, {"annotations": annotations})
    scipy.io.savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array([CARS], object)})
    return rows


WNIDS = ("n01440764", "n01443537", "n02099601")


def imagenet(root, *, train=20, val=2):
    """train/WNID/ and val/WNID/."""
    for label, wnid in enumerate(WNIDS):
        for index in range(train):
            write_jpeg(root / "train" / wnid / f"{wnid}_{index}.JPEG", label, (6, 5))
        for index in range(val):
            number = 1 + label + index * len(WNIDS)
            path = root / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG"
            write_jpeg(path, label, (6, 5))
    return root
