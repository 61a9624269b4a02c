"""Hand-written digits, 8 x 8 pixels, that come with scikit-learn."""

import dataclasses

import numpy as np
from PIL import Image

from bpt.dataset.benchmark import Benchmark, DatasetInfo, Request
from bpt.dataset.split import Split

SIZES = (1000, 200, 597)
MARGIN = 1  # black pixels around, so that a centre crop does not cut the strokes


class _Digits:
    """Name -> image: "17" is image 17."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        values = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
        self.images = np.pad(values, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))

    def __call__(self, name: str) -> Image.Image:
        return Image.fromarray(self.images[int(name)]).convert("RGB")


def open_digits(request: Request) -> Benchmark:
    """1,797 images of 10 x 10 pixels: 1,000 to train on, 200 to validate, 597 to test.

    The splits keep the share of each class and are always the same. A mirrored digit is none.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    labels = load_digits().target.astype(np.int64)
    train, val, test = SIZES
    rest, tested = train_test_split(
        np.arange(len(labels)), test_size=test, stratify=labels, random_state=0
    )
    trained, validated = train_test_split(
        rest, test_size=val, stratify=labels[rest], random_state=0
    )
    assert len(trained) == train
    opener = _Digits()

    def split(indices: np.ndarray) -> Split:
        return Split(tuple(str(index) for index in indices), labels[indices], opener)

    found = request.benchmark(
        "digits", tuple("0123456789"), split(trained), split(tested), split(validated)
    )
    return dataclasses.replace(found, source="scikit-learn", flip=False, smallest_crop=0.5)


INFO = DatasetInfo(
    name="digits",
    title="Optical recognition of handwritten digits",
    classes=10,
    sizes=SIZES,
    licence="CC BY 4.0",
    citation="Alpaydin and Kaynak 1998, doi 10.24432/C50P49",
    source="comes with scikit-learn",
    files="nothing",
    embedded=True,
    own_validation=True,
    opener=open_digits,
)
