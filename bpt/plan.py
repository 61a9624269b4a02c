"""What a training would do, before it is run: nothing is written, and nothing is downloaded."""

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block  # type: ignore[attr-defined, unused-ignore]
from torch import nn

from bpt.batches import fitted
from bpt.cache import cache_root
from bpt.configuration import default_folder, open_benchmark, training_split
from bpt.construction import build_model, check_trainable, count_parameters, prompted_blocks
from bpt.cost import VitShape, dataset_sizes, kept_bytes, training_cost, training_memory, used_sizes
from bpt.dataset import Benchmark, FileOpener, dataset_info, how_to_get, locate
from bpt.dataset.place import not_found, place_of
from bpt.engine import autocast
from bpt.image_batches import steps_of
from bpt.model import plain_vit
from bpt.recipe import Recipe
from burst.backbone import Backbone, load_backbone
from burst.backbone_spec import known_backbone
from burst.device import choose_device
from burst.loading.common import CODE

LONG_ENOUGH = 0.5  # seconds of a measurement
MEASURED = {"cpu": 4, "cuda": 64}  # images at once in it, at most


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a training would do.

    Attributes:
        recipe: of it.
        folder: where its run would lie, if nobody says.
        classes: outputs of the head.
        images: to train on, to choose the epoch on, and to test on, as the protocol has it.
        counted: whether these are the images that are at hand; else as many as were published.
        steps: of an epoch.
        files: whether images are files, whose pixels are kept too.
        device: that was measured.
        notes: what is not at hand, a sentence each.
        blocks: that get a prompt.
        depth: blocks in all; None for a backbone that could be known only by a download, and so
            what follows.
        parameters: as `config.json` has them.
        operations: floating-point operations of the whole training.
        seconds: about how long the device takes for them, without reading images.
        memory: bytes of a step, about.
        kept: bytes on disk of tokens that are computed once.
    """

    recipe: Recipe
    folder: Path
    classes: int
    images: tuple[int, int, int]
    steps: int
    device: str
    counted: bool = True
    files: bool = True
    notes: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    depth: int | None = None
    parameters: dict[str, int] | None = None
    operations: float | None = None
    seconds: float | None = None
    memory: float | None = None
    kept: int = 0

    @property
    def cache(self) -> Path:
        """Where tokens and pixels are kept."""
        return cache_root()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        found = asdict(self) | {"recipe": self.recipe.to_dict()}
        return found | {"folder": str(self.folder), "cache": str(self.cache)}


def plan_training(recipe: Recipe, *, device: str = "auto") -> TrainingPlan:
    """What `train` would do with this recipe.

    One's own images, and a benchmark that is unpacked, are counted; else the published numbers
    hold. The device is measured on one block of the backbone, for less than a second.

    Args:
        recipe: of a classifier.
        device: "auto", "cpu", "cuda", ...

    Raises:
        BurstError: what `train` would refuse of recipe, dataset, placement or device.
    """
    chosen = choose_device(device)
    benchmark, notes = _benchmark(recipe)
    sizes, classes = _counted(recipe, benchmark)
    used = used_sizes(recipe, sizes)
    recipe = fitted(recipe, used[0])
    steps = steps_of(recipe, used[0])
    backbone = _backbone(recipe)
    if note := _missing_weights(recipe):
        notes = (*notes, note)
    plan = TrainingPlan(
        recipe=recipe,
        folder=default_folder(recipe),
        classes=classes,
        images=used,
        steps=steps,
        device=str(chosen),
        counted=benchmark is not None,
        files=benchmark is None or isinstance(benchmark.train.opener, FileOpener),
        notes=notes,
    )
    if backbone is None:
        return plan
    shape, flip = _shape(backbone), benchmark.flip if benchmark else True
    cost = training_cost(recipe, sizes, shape=shape, flip=flip)
    assert cost is not None
    counts = _parameters(recipe, backbone, classes)
    memory = training_memory(recipe, shape, trained=counts["trained"], total=counts["total"])
    return replace(
        plan,
        blocks=prompted_blocks(recipe, backbone),
        depth=shape.depth,
        parameters=counts,
        operations=cost.operations,
        seconds=cost.operations / measured_rate(recipe, shape, chosen),
        memory=memory,
        kept=kept_bytes(recipe, sizes, shape, flip=flip),
    )


def measured_rate(recipe: Recipe, shape: VitShape, device: torch.device) -> float:
    """Floating-point operations a second that one block of the shape reaches on this device."""
    block: nn.Module = Block(shape.width, max(1, shape.width // 64), qkv_bias=True)  # type: ignore[no-untyped-call, unused-ignore]
    block = block.to(device).eval()
    images = min(MEASURED.get(device.type, 4), recipe.batch_size // recipe.accumulation)
    x = torch.zeros(images, shape.tokens, shape.width, device=device)

    def run() -> None:
        with torch.no_grad(), autocast(device, recipe.precision):
            block(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    end, fastest = time.perf_counter() + LONG_ENOUGH, math.inf
    while (start := time.perf_counter()) < end or fastest == math.inf:
        run()
        # The mean would tell of what else the machine does meanwhile.
        fastest = min(fastest, time.perf_counter() - start)
    one = 24.0 * shape.tokens * shape.width**2 + 4.0 * shape.tokens**2 * shape.width
    return images * one / fastest


def _benchmark(recipe: Recipe) -> tuple[Benchmark | None, tuple[str, ...]]:
    """The dataset, where it can be opened without unpacking; and what is not at hand."""
    info = dataset_info(recipe.dataset)
    if info.layout is not None:
        place = place_of(recipe.data)
        if locate(info, recipe.data)[0] is None:
            return None, (not_found(info.name, info.layout, place, hint=how_to_get(info)),)
        if packed := info.layout.packed(place):  # of what is there, a part may be
            folder, archive = packed[0]
            return None, (f"{folder / archive.file} would be unpacked",)
    opened = open_benchmark(recipe)
    training_split(recipe, opened)
    return opened, ()


def _counted(recipe: Recipe, benchmark: Benchmark | None) -> tuple[tuple[int, int, int], int]:
    """Images to train, validate and test, and classes."""
    if benchmark is None:
        return dataset_sizes(recipe), dataset_info(recipe.dataset).classes or 0
    return benchmark.sizes, len(benchmark.classes)


def _backbone(recipe: Recipe) -> Backbone | None:
    """The backbone with random weights, of a known one without any; None if it is on a hub.

    One of one's own is what its function returns.
    """
    check_trainable(recipe.model)
    spec = known_backbone(recipe.model)
    library = recipe.model.partition(":")[0]
    if spec is None and library == "hf-hub":
        return None
    size = recipe.image_size
    if library == "python":  # its function decides of the weights, and downloads what it likes
        return load_backbone(recipe.model, recipe.weights, image_size=size)
    if spec is None:
        return load_backbone(recipe.model, "random", image_size=size)
    if size:
        load_backbone(recipe.model, "random", image_size=size)  # refuses what cannot be read
        spec = replace(spec, image_size=size)
    with torch.device("meta"):
        model = spec.build()
    return Backbone(
        name=spec.name,
        model=model.eval().requires_grad_(False),
        pretraining=spec.pretraining,
        pooling=spec.pooling,
        mean=spec.mean,
        std=spec.std,
        image_size=(spec.image_size, spec.image_size),
        interpolation=spec.interpolation,
        weights_source="none",
        weights_sha256=None,
    )


def _missing_weights(recipe: Recipe) -> str:
    spec = known_backbone(recipe.model)
    own = recipe.model.startswith(CODE)
    if own or recipe.weights or (spec and spec.on_disk()):
        return ""
    if spec is None:
        return f"the weights of {recipe.model} are downloaded unless they are in a cache"
    mib = 4 * spec.parameters >> 20
    return f"the weights of {spec.name} are not on disk: about {mib:,} MiB of {spec.source}"


def _shape(backbone: Backbone) -> VitShape:
    vit = plain_vit(backbone)
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    return VitShape(len(vit.blocks), vit.embed_dim, tokens)


def _parameters(recipe: Recipe, backbone: Backbone, classes: int) -> dict[str, int]:
    """What is trained, counted on a model whose weights and starts have no values."""
    vit, blocks = plain_vit(backbone), prompted_blocks(recipe, backbone)
    width, depth = vit.embed_dim, len(vit.blocks)
    # Of these values are copied or shared, which there are none of: what they add is added here.
    instead = {"lora": "bitfit", "gatevpt": "vpt"}.get(recipe.method, recipe.method)
    matrix = torch.ones(width) if recipe.method == "bpt-dwhiten" else torch.eye(width)
    model = build_model(
        replace(recipe, method=instead),
        backbone,
        classes,
        whitening=dict.fromkeys(blocks, matrix) if recipe.needs_whitening else None,
        tokens=dict.fromkeys(blocks, torch.zeros(recipe.num_prompts, width)),
    )
    counts = count_parameters(model)
    if recipe.method == "lora":
        counts |= {"trained": counts["head"], "backbone": 0}
        return _with(counts, "backbone", 4 * recipe.bottleneck * width * depth)
    return _with(counts, "prompts", 2 * depth - 1) if recipe.method == "gatevpt" else counts


def _with(counts: dict[str, int], name: str, more: int) -> dict[str, int]:
    return counts | {one: counts[one] + more for one in (name, "trained", "total")}
