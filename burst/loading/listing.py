"""What is known of the models of a library, without building or downloading any."""

from collections.abc import Callable

from burst import hub
from burst.errors import check_known

Row = dict[str, str]


def library_models(library: str) -> list[Row]:
    """The models of a library by the names that `load_backbone` takes, or what is known of them.

    Args:
        library: "timm", "torchvision" or "open_clip": every name and its published weights; "hf",
            of which no list would end: the architectures whose attention has an adapter, and what
            comes of it.

    Returns:
        A row a model, all of the same columns.

    Raises:
        UnknownName: another library.
        BurstError: the library is not installed.
    """
    check_known("library", library, LISTS)
    return LISTS[library]()


def _timm() -> list[Row]:
    import timm

    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for name in timm.list_pretrained():
        architecture, _, tag = name.partition(".")
        tags.setdefault(architecture, []).append(tag)
    return [{"name": f"timm:{name}", "weights": ", ".join(tags[name])} for name in tags]


def _torchvision() -> list[Row]:
    from burst.loading.torchvision import known_weights

    return [
        {
            "name": f"torchvision:{architecture}.{name}",
            "pixels": str(weights.transforms().crop_size[0]),
            "parameters": f"{weights.meta['num_params'] / 1e6:.0f} M",
            "on disk": "yes" if hub.torch_hub_file(weights.url) else "no",
        }
        for architecture, all_of_it in known_weights().items()
        for name, weights in all_of_it.items()
        if name == weights.name  # DEFAULT is another name of one of them
    ]


def _open_clip() -> list[Row]:
    from burst.loading.open_clip import known_weights

    return [
        {"name": f"open_clip:{architecture}", "weights": ", ".join(tags)}
        for architecture, tags in known_weights().items()
    ]


def _transformers() -> list[Row]:
    from burst.adapters.registry import known_classes

    rows = []
    for full, entry in sorted(known_classes().items()):
        module, _, attention = full.partition(":")
        if module.startswith("transformers.models."):
            outcome = "measured" if entry.read else f"refused: {entry.reason}"
            rows.append({"model": module.split(".")[2], "attention": attention, "outcome": outcome})
    return rows


LISTS: dict[str, Callable[[], list[Row]]] = {
    "hf": _transformers,
    "open_clip": _open_clip,
    "timm": _timm,
    "torchvision": _torchvision,
}
