"""Stanford Dogs: 120 breeds, images from ImageNet."""

from pathlib import Path

import numpy as np

from bpt.dataset.benchmark import FGVC_COPY, Benchmark, DatasetInfo, Request
from bpt.dataset.download import RemoteFile
from bpt.dataset.listing import Listed, read_mat, vpt_benchmark, whole_numbers
from bpt.dataset.place import Archive, Layout, required
from burst.errors import ImageError

SITE = "http://vision.stanford.edu/aditya86/ImageNetDogs/"


def open_dogs(request: Request) -> Benchmark:
    """train_list.mat and test_list.mat, images in Images/.

    Raises:
        ImageError: a file is missing or damaged, or an image is missing.
    """
    if found := vpt_benchmark(request, "dogs", prefix="Images/"):
        return found
    root = request.root
    assert root is not None
    lists = {
        kind: _read(required(root, f"{kind}_list.mat", f"lists/{kind}_list.mat"))
        for kind in ("train", "test")
    }
    folders: dict[int, str] = {}
    labels: dict[str, int] = {}
    for path, label in (*lists["train"], *lists["test"]):
        folder = path.split("/")[1]
        if folders.setdefault(label, folder) != folder or labels.setdefault(folder, label) != label:
            raise ImageError(
                f"{root}: labels and folders do not match one to one: {path} has label {label}"
            )
    classes = [folders[label].partition("-")[2].replace("_", " ") for label in sorted(folders)]
    place = {label: number for number, label in enumerate(sorted(folders))}
    listed = Listed(root)
    train, test = (
        listed.split((path, place[label]) for path, label in lists[kind])
        for kind in ("train", "test")
    )
    return request.benchmark("dogs", classes, train, test)


def _read(file: Path) -> list[tuple[str, int]]:
    """Paths from the root, and labels from 1."""
    names, labels = read_mat(file, "file_list", "labels")
    names, labels = np.atleast_1d(names), whole_numbers(labels, f"{file}, labels")
    if len(names) != len(labels):
        raise ImageError(f"{file} has {len(names)} names and {len(labels)} labels")
    pairs = zip(names.tolist(), labels.tolist(), strict=True)
    return [(f"Images/{str(name).strip()}", label) for name, label in pairs]


INFO = DatasetInfo(
    name="dogs",
    title="Stanford Dogs",
    classes=120,
    sizes=(10_800, 1_200, 8_580),
    licence="ImageNet's terms: for research and teaching",
    citation="Khosla et al. 2011, FGVC workshop at CVPR",
    source=SITE,
    copies=(FGVC_COPY,),
    files="images.tar or Images/, and lists.tar or train_list.mat and test_list.mat",
    opener=open_dogs,
    layout=Layout(
        folders=("dogs", "Dogs", "stanford_dogs", "StanfordDogs"),
        markers=("train_list.mat", "lists/train_list.mat", "train.json"),
        archives=(Archive("images.tar", "Images", top="Images"), Archive("lists.tar", "lists")),
    ),
    downloads=(
        RemoteFile(SITE + "images.tar", "images.tar", "1bb1f2a596ae7057f99d7d75860002ef"),
        RemoteFile(SITE + "lists.tar", "lists.tar", "edbb9f16854ec66506b5f09b583e0656"),
    ),
)
