"""Caltech-UCSD Birds-200-2011 and NABirds: birds in the same five text files."""

from functools import partial
from pathlib import Path

from bpt.dataset.benchmark import FGVC_COPY, Benchmark, DatasetInfo, Request
from bpt.dataset.download import RemoteFile
from bpt.dataset.listing import Listed, read_table, vpt_benchmark
from bpt.dataset.place import Archive, Layout, required
from burst.errors import ImageError

CUB_FOLDER = "CUB_200_2011"
# The lists of both have the same names; of folders of images, 001.Black_footed_Albatross and 0817.
OF_CUB, OF_NABIRDS = r"\d+\.\D.*", r"\d+"


def open_birds(request: Request, name: str, folder: str) -> Benchmark:
    """images.txt, image_class_labels.txt, train_test_split.txt and classes.txt, by image id.

    Classes are the ids that occur in image_class_labels.txt, in the order of their numbers: NABirds
    lists inner nodes of its hierarchy in classes.txt too, and its ids have gaps. VPT's split files
    may lie beside all these, or beside the archive, whose content becomes `folder`.

    Raises:
        ImageError: a file is missing or damaged, the files name different images or one twice, or
            an image is missing.
    """
    if found := vpt_benchmark(request, name, prefix="images/", unpacked=folder):
        return found
    root = request.root
    assert root is not None
    paths = _column(root, "images.txt")
    class_ids = _column(root, "image_class_labels.txt")
    training = _column(root, "train_test_split.txt")
    for other, file in ((class_ids, "image_class_labels.txt"), (training, "train_test_split.txt")):
        if odd := sorted(paths.keys() ^ other.keys()):
            raise ImageError(f"{root}: image {odd[0]} is not in both images.txt and {file}")
    if odd := [image for image, flag in training.items() if flag not in ("0", "1")]:
        flag = training[odd[0]]
        raise ImageError(
            f"{root}/train_test_split.txt gives image {odd[0]} the split {flag!r}; expected 1, to "
            "train, or 0, to test"
        )
    names = {_number(root, key): name for key, name in _column(root, "classes.txt").items()}
    ids = sorted({_number(root, one) for one in class_ids.values()})
    if lacking := [one for one in ids if one not in names]:
        raise ImageError(f"{root}/classes.txt has no class {lacking[0]}")
    label = {one: place for place, one in enumerate(ids)}
    listed = Listed(root)

    def split(flag: str) -> list[tuple[str, int]]:
        return [
            (f"images/{path}", label[int(class_ids[image])])
            for image, path in paths.items()
            if training[image] == flag
        ]

    return request.benchmark(
        name,
        [_readable(names[one]) for one in ids],
        listed.split(split("1")),
        listed.split(split("0")),
    )


def _column(root: Path, file: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for one, value in read_table(required(root, file), 2):
        if one in found:
            raise ImageError(f"{root}/{file}: {one} occurs twice")
        found[one] = value
    return found


def _number(root: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ImageError(f"{root}: class id {text!r} is no number") from None


def _readable(name: str) -> str:
    """001.Black_footed_Albatross -> Black footed Albatross."""
    number, dot, rest = name.partition(".")
    return (rest if dot and number.isdigit() else name).replace("_", " ")


CUB = DatasetInfo(
    name="cub",
    title="Caltech-UCSD Birds-200-2011",
    classes=200,
    sizes=(5_394, 600, 5_794),
    licence="images belong to their photographers; for research",
    citation="Wah et al. 2011, Caltech CNS-TR-2011-001",
    source="https://data.caltech.edu/records/65de6-vp158",
    copies=(FGVC_COPY,),
    files=f"{CUB_FOLDER}.tgz, or {CUB_FOLDER}/ with images.txt, image_class_labels.txt, "
    "train_test_split.txt, classes.txt and images/",
    opener=partial(open_birds, name="cub", folder=CUB_FOLDER),
    layout=Layout(
        folders=(CUB_FOLDER, "cub", f"cub/{CUB_FOLDER}", f"{CUB_FOLDER}/{CUB_FOLDER}"),
        markers=("images.txt", "train.json"),
        archives=(Archive(f"{CUB_FOLDER}.tgz", CUB_FOLDER, top=CUB_FOLDER),),
        foreign=OF_NABIRDS,
    ),
    downloads=(
        RemoteFile(
            f"https://data.caltech.edu/records/65de6-vp158/files/{CUB_FOLDER}.tgz",
            f"{CUB_FOLDER}.tgz",
            "97eceeb196236b17998738112f37df78",
        ),
    ),
)

NABIRDS = DatasetInfo(
    name="nabirds",
    title="NABirds",
    classes=555,
    sizes=(21_536, 2_393, 24_633),
    licence="Cornell Lab of Ornithology's terms of use; for research, after registration",
    citation="Van Horn et al. 2015, doi 10.1109/CVPR.2015.7298658",
    source="https://dl.allaboutbirds.org/nabirds (registration)",
    copies=(FGVC_COPY,),
    files="nabirds.tar.gz, or nabirds/ with images.txt, image_class_labels.txt, "
    "train_test_split.txt, classes.txt and images/",
    opener=partial(open_birds, name="nabirds", folder="nabirds"),
    layout=Layout(
        folders=("nabirds", "NABirds", "nabirds/nabirds"),
        markers=("images.txt", "train.json"),
        archives=(Archive("nabirds.tar.gz", "nabirds", top="nabirds"),),
        foreign=OF_CUB,
    ),
)
