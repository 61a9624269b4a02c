"""Oxford 102 Flowers."""

from torchvision.datasets import Flowers102

from bpt.dataset.benchmark import FGVC_COPY, Benchmark, DatasetInfo, Request
from bpt.dataset.download import RemoteFile
from bpt.dataset.listing import Listed, read_mat, vpt_benchmark, whole_numbers
from bpt.dataset.place import Archive, Layout, required

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
    labels = whole_numbers(read_mat(labels_file, "labels")[0], f"{labels_file}, labels")
    listed = Listed(root)
    splits = {}
    for (kind, key), values in zip(IDS.items(), read_mat(ids_file, *IDS.values()), strict=True):
        ids = whole_numbers(values, f"{ids_file}, {key}", most=len(labels))
        images = ((f"jpg/image_{one:05d}.jpg", int(labels[one - 1]) - 1) for one in ids.tolist())
        splits[kind] = listed.split(images)
    names = list(Flowers102.classes) if labels.max(initial=0) <= len(Flowers102.classes) else None
    classes = names or [str(one) for one in range(1, int(labels.max()) + 1)]
    return request.benchmark("flowers", classes, splits["train"], splits["test"], splits["val"])


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
