"""Oxford 102 Flowers."""

from pathlib import Path

import numpy as np
from torchvision.datasets import Flowers102

from bpt.dataset.benchmark import FGVC_COPY, Benchmark, DatasetInfo, Request
from bpt.dataset.download import RemoteFile
from bpt.dataset.listing import Listed, read_mat, vpt_benchmark
from bpt.dataset.place import Archive, Layout, required
from burst.errors import ImageError

PREFIX = Flowers102._download_url_prefix
FILES = Flowers102._file_dict
IDS = {"train": "trnid", "val": "valid", "test": "tstid"}


def open_flowers(request: Request) -> Benchmark:
    """The official three-way split: setid.mat's trnid, valid and tstid, in that sense.

    Some papers train on tstid, the largest; Table 6 of the paper does not.

    Raises:
        ImageError: a file is missing or damaged, or an image is missing.
    """
    if found := vpt_benchmark(request, "flowers"):
        return found
    root = request.root
    assert root is not None
    labels_file, ids_file = required(root, "imagelabels.mat"), required(root, "setid.mat")
    labels = np.atleast_1d(read_mat(labels_file, "labels")[0]).astype(np.int64)
    if labels.size and labels.min() < 1:
        image = int(labels.argmin()) + 1
        raise ImageError(
            f"{labels_file}: image {image} has label {labels.min()}, not one from 1 on"
        )
    listed = Listed(root)
    splits = {
        kind: listed.split(_images(ids, labels, ids_file))
        for kind, ids in zip(IDS, read_mat(ids_file, *IDS.values()), strict=True)
    }
    names = list(Flowers102.classes) if labels.max(initial=0) <= len(Flowers102.classes) else None
    classes = names or [str(one) for one in range(1, int(labels.max()) + 1)]
    return request.benchmark("flowers", classes, splits["train"], splits["test"], splits["val"])


def _images(ids: np.ndarray, labels: np.ndarray, file: Path) -> list[tuple[str, int]]:
    ids = np.atleast_1d(ids).astype(np.int64)
    if (odd := ids[(ids < 1) | (ids > len(labels))]).size:
        raise ImageError(f"{file} names image {odd[0]}, but there are labels 1 to {len(labels)}")
    return [(f"jpg/image_{one:05d}.jpg", int(labels[one - 1]) - 1) for one in ids.tolist()]


INFO = DatasetInfo(
    name="flowers",
    title="Oxford 102 Flowers",
    classes=102,
    sizes=(1_020, 1_020, 6_149),
    own_validation=True,
    licence="not stated; for research",
    citation="Nilsback and Zisserman 2008, doi 10.1109/ICVGIP.2008.47",
    source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    copies=(FGVC_COPY,),
    files="102flowers.tgz or jpg/, imagelabels.mat and setid.mat",
    opener=open_flowers,
    layout=Layout(
        folders=("flowers-102", "flowers", "Flowers", "Flowers/102flowers"),
        markers=("imagelabels.mat", "setid.mat", "train.json"),
        archives=(Archive("102flowers.tgz", "jpg", top="jpg"),),
    ),
    downloads=tuple(RemoteFile(PREFIX + name, name, md5) for name, md5 in FILES.values()),
)
