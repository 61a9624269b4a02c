"""NABirds: North American birds, by species, sex and age."""

from bpt.dataset.benchmark import Benchmark, DatasetInfo, Request
from bpt.dataset.bird_lists import open_birds
from bpt.dataset.place import Archive, Layout


def open_nabirds(request: Request) -> Benchmark:
    """555 visual categories; see `open_birds`."""
    return open_birds(request, "nabirds")


INFO = DatasetInfo(
    name="nabirds",
    title="NABirds",
    classes=555,
    sizes=(21_536, 2_393, 24_633),
    licence="Cornell Lab of Ornithology's terms of use; for research, after registration",
    citation="Van Horn et al. 2015, doi 10.1109/CVPR.2015.7298658",
    source="https://dl.allaboutbirds.org/nabirds (registration)",
    files="nabirds.tar.gz, or nabirds/ with images.txt, image_class_labels.txt, "
    "train_test_split.txt, classes.txt and images/",
    opener=open_nabirds,
    layout=Layout(
        folders=("nabirds", "NABirds", "nabirds/nabirds"),
        markers=("images.txt", "train.json"),
        archives=(Archive("nabirds.tar.gz", "nabirds", top="nabirds"),),
    ),
)
