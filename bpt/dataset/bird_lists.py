"""The five text files that CUB-200-2011 and NABirds share."""

from pathlib import Path

from bpt.dataset.benchmark import Benchmark, Request
from bpt.dataset.listing import Listed, read_table, vpt_benchmark
from bpt.dataset.place import required
from burst.errors import ImageError


def open_birds(request: Request, name: str) -> Benchmark:
    """images.txt, image_class_labels.txt, train_test_split.txt and classes.txt, by image id.

    Classes are the ids that occur in image_class_labels.txt, in the order of their numbers: NABirds
    lists inner nodes of its hierarchy in classes.txt too, and its ids have gaps.

    Raises:
        ImageError: a file is missing or damaged, the files name different images, or an image is
            missing.
    """
    if found := vpt_benchmark(request, name, prefix="images/"):
        return found
    root = request.root
    assert root is not None
    paths = _column(root, "images.txt")
    class_ids = _column(root, "image_class_labels.txt")
    training = _column(root, "train_test_split.txt")
    for other, file in ((class_ids, "image_class_labels.txt"), (training, "train_test_split.txt")):
        if odd := sorted(paths.keys() ^ other.keys()):
            raise ImageError(f"{root}: image {odd[0]} is not in both images.txt and {file}")
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
    return {row[0]: row[1] for row in read_table(required(root, file), 2)}


def _number(root: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ImageError(f"{root}: class id {text!r} is no number") from None


def _readable(name: str) -> str:
    """001.Black_footed_Albatross -> Black footed Albatross."""
    number, dot, rest = name.partition(".")
    return (rest if dot and number.isdigit() else name).replace("_", " ")
