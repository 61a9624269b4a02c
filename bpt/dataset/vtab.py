"""VTAB-1k: 19 tasks of 1,000 images to train on, as pictures with lists of their labels.

Two versions go about, and the same model differs on them, on CIFAR-100 by about ten points
(visinf/adapter_plus#3). The original are tensors, which VPT and adapter-plus read by TensorFlow
Datasets. The pictures were written from them by ZhangYuanhan-AI/NOAH, data/vtab-source/
get_vtab1k.py, as JPEGs, and are handed on by RepAdapter and SSF, which most others use. Which
images are the 1,000, and the classes of clevr, kitti, dsprites and smallnorb, are computed by
VTAB's code in TensorFlow, in the order in which TensorFlow Datasets reads its shards: so what that
keeps on disk is not read here. NOAH's script with ".png" for ".jpg" writes the tensors without
loss: such a copy is read, and named so in a run's config.json.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bpt.dataset.benchmark import Benchmark, DatasetInfo, Request
from bpt.dataset.listing import Listed, read_table
from bpt.dataset.place import Archive, Layout, find, required
from burst.errors import ImageError, check_known

SPLITS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
BOTH = "train800val200.txt"
HELD_OUT = 0.2  # where only the list of all 1,000 is there
FOLDERS = ("vtab-1k", "vtab_1k", "vtab1k", "vtab", "VTAB-1k")
LOSSY = (".jpg", ".jpeg")
VERSIONS = {
    True: "pictures, JPEG (as NOAH, SSF and RepAdapter have them)",
    False: "pictures without loss (the pixels of the tensors that VPT and adapter-plus read)",
}
SOURCE = "github.com/ZhangYuanhan-AI/NOAH, data/vtab-source/get_vtab1k.py, which makes it"
COPIES = (
    "RepAdapter's Google Drive (vtab-1k.zip, 1yZKwiKdsBzTfBgnStRveYMokc7GMMd5p)",
    "huggingface.co/datasets/XiN0919/VTAB-1k",
)
FILES = (
    f"vtab-1k/TASK/ with {', '.join(SPLITS.values())} (a path and a class a line) and images/, or "
    "vtab-1k.zip"
)
CITATION = "Zhai et al. 2019, arXiv 1910.04867"


@dataclass(frozen=True)
class Task:
    """One of VTAB's tasks.

    Attributes:
        title: for people.
        group: natural, specialised or structured.
        classes: how many.
        test: test images.
        licence: of the images, as far as known.
        flip: whether a mirrored image is still of its class.
    """

    title: str
    group: str
    classes: int
    test: int
    licence: str
    flip: bool = True


NATURAL, SPECIALISED, STRUCTURED = "natural", "specialised", "structured"
UNKNOWN = "not stated"
# Classes and test images: BenediktAlkin/vtab1k-pytorch, src/vtab/datasets, and VTAB's own code.
TASKS = {
    "caltech101": Task("Caltech101", NATURAL, 102, 6_085, "CC BY 4.0"),
    "cifar": Task("CIFAR-100", NATURAL, 100, 10_000, UNKNOWN),
    "dtd": Task("Describable Textures", NATURAL, 47, 1_880, "for research"),
    "oxford_flowers102": Task("Oxford 102 Flowers", NATURAL, 102, 6_149, UNKNOWN),
    "oxford_iiit_pet": Task("Oxford-IIIT Pet", NATURAL, 37, 3_669, "CC BY-SA 4.0"),
    "svhn": Task("Street View House Numbers", NATURAL, 10, 26_032, "non-commercial", flip=False),
    "sun397": Task("SUN397", NATURAL, 397, 21_750, "for research"),
    "patch_camelyon": Task("PatchCamelyon", SPECIALISED, 2, 32_768, "CC0"),
    "eurosat": Task("EuroSAT", SPECIALISED, 10, 5_400, "MIT"),
    "resisc45": Task("NWPU-RESISC45", SPECIALISED, 45, 6_300, UNKNOWN),
    "diabetic_retinopathy": Task(
        "Diabetic Retinopathy", SPECIALISED, 5, 42_670, "rules of its competition on Kaggle"
    ),
    "clevr_count": Task("CLEVR, how many objects", STRUCTURED, 8, 15_000, "CC BY 4.0"),
    "clevr_dist": Task("CLEVR, how far the nearest", STRUCTURED, 6, 15_000, "CC BY 4.0"),
    "dmlab": Task("DMLab, how near and how good", STRUCTURED, 6, 22_735, UNKNOWN),
    "kitti": Task("KITTI, how far the nearest car", STRUCTURED, 4, 711, "CC BY-NC-SA 3.0"),
    "dsprites_loc": Task("dSprites, where across", STRUCTURED, 16, 73_728, "Apache 2.0", False),
    "dsprites_ori": Task("dSprites, how turned", STRUCTURED, 16, 73_728, "Apache 2.0", False),
    "smallnorb_azi": Task("SmallNORB, azimuth", STRUCTURED, 18, 12_150, "for research", False),
    "smallnorb_ele": Task("SmallNORB, elevation", STRUCTURED, 9, 12_150, "for research"),
}
MEMBERS = tuple(f"vtab:{name}" for name in TASKS)


def open_vtab(request: Request, name: str) -> Benchmark:
    """A task's 800 images to train, 200 to validate and its test images.

    `--protocol authors` and `last` train on the 1,000. Where only train800val200.txt is there, 200
    of them are held out, class by class, see `hold_out`. Classes are numbers: the lists have no
    names. Images are resized whole to the backbone's square, as VTAB does.

    Args:
        request: with the place.
        name: of the task.

    Raises:
        ImageError: a list is missing or damaged, names a class that the task does not have, or
            images that are missing; it is another task's folder.
    """
    root, task = request.root, TASKS[name]
    assert root is not None
    if root.name != name and root.name in TASKS:
        raise ImageError(f"{root} holds vtab:{root.name}, not vtab:{name}; give the folder above")
    listed = Listed(root)
    halves = all(find(root, SPLITS[kind]) for kind in ("train", "val"))
    lists = {"train": SPLITS["train"] if halves else BOTH, "test": SPLITS["test"]}
    if halves:
        lists["val"] = SPLITS["val"]
    splits = {
        kind: listed.split(_listed(required(root, file), task)) for kind, file in lists.items()
    }
    classes = [str(number) for number in range(task.classes)]
    found = request.benchmark(
        f"vtab:{name}",
        classes,
        splits["train"],
        splits["test"],
        splits.get("val"),
        held_out=HELD_OUT,
    )
    lossy = splits["train"].names[0].lower().endswith(LOSSY)
    version = VERSIONS[lossy]
    note = f"vtab:{name}: {version}"
    if not halves:
        note += f"; {root} has no {SPLITS['train']} and {SPLITS['val']}: 200 of 1,000 are held out"
    about = {"version": version, "group": task.group}
    return dataclasses.replace(
        found, flip=task.flip, squash=True, about=about, notes=(note, *found.notes)
    )


def _listed(file: Path, task: Task) -> list[tuple[str, int]]:
    """Paths from the root, and classes from 0."""
    found = []
    for number, line in enumerate(read_table(file, 1), 1):
        path, _, text = line[0].rpartition(" ")
        if not text.isdecimal() or not path.strip():
            raise ImageError(f"{file}, line {number}: {line[0]!r} is no path and class number")
        if int(text) >= task.classes:
            raise ImageError(
                f"{file}, line {number}: class {text}, but {task.title} has {task.classes}, from 0"
            )
        found.append((path.strip(), int(text)))
    return found


def vtab_info(name: str) -> DatasetInfo:
    """What is known of a task, by its name.

    Raises:
        UnknownName: there is none of the name; the nearest are offered.
    """
    check_known("task of vtab", name, TASKS)
    task = TASKS[name]
    return DatasetInfo(
        name=f"vtab:{name}",
        title=f"VTAB-1k, {task.title} ({task.group})",
        classes=task.classes,
        sizes=(800, 200, task.test),
        licence=task.licence,
        citation=CITATION,
        source=SOURCE,
        copies=COPIES,
        files=FILES.replace("TASK", name),
        opener=partial(open_vtab, name=name),
        layout=_layout(name),
        augmentation="none",
        own_validation=True,
    )


def _layout(name: str) -> Layout:
    return Layout(
        folders=(*(f"{folder}/{name}" for folder in FOLDERS), name, *FOLDERS),
        markers=(SPLITS["train"], BOTH),
        archives=(
            Archive(f"{name}.zip", name, top=name),
            Archive("vtab-1k.zip", "vtab-1k", top="vtab-1k"),
        ),
    )


INFO = DatasetInfo(
    name="vtab",
    title="VTAB-1k, as vtab:TASK",
    classes=None,
    sizes=None,
    licence="of each task its own",
    citation=CITATION,
    source=SOURCE,
    copies=COPIES,
    files=FILES,
    members=MEMBERS,
)
