"""Caltech-UCSD Birds-200-2011."""

from bpt.dataset.benchmark import Benchmark, DatasetInfo, Request
from bpt.dataset.bird_lists import open_birds
from bpt.dataset.download import RemoteFile
from bpt.dataset.place import Archive, Layout

FOLDER = "CUB_200_2011"


def open_cub(request: Request) -> Benchmark:
    """200 species; see `open_birds`."""
    return open_birds(request, "cub")


INFO = DatasetInfo(
    name="cub",
    title="Caltech-UCSD Birds-200-2011",
    classes=200,
    sizes=(5_394, 600, 5_794),
    licence="images belong to their photographers; for research",
    citation="Wah et al. 2011, Caltech CNS-TR-2011-001",
    source="https://data.caltech.edu/records/65de6-vp158",
    files=f"{FOLDER}.tgz, or {FOLDER}/ with images.txt, image_class_labels.txt, "
    "train_test_split.txt, classes.txt and images/",
    opener=open_cub,
    layout=Layout(
        folders=(FOLDER, "cub", f"cub/{FOLDER}"),
        markers=("images.txt", "train.json"),
        archives=(Archive(f"{FOLDER}.tgz", FOLDER, top=FOLDER),),
    ),
    downloads=(
        RemoteFile(
            f"https://data.caltech.edu/records/65de6-vp158/files/{FOLDER}.tgz",
            f"{FOLDER}.tgz",
            "97eceeb196236b17998738112f37df78",
        ),
    ),
)
