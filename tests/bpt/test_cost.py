"""What a training costs, beside what torch counts while it runs, and what a cache then holds."""

from dataclasses import replace

import pytest
import timm
import torch
from support import SIZE, backbone_of, vit
from torch.utils._python_dispatch import TorchDispatchMode

import bpt
import burst
from bpt import Recipe, dataset_sizes, training_cost
from bpt.construction import build_model, count_parameters
from bpt.cost import VitShape, kept_bytes, kept_images, training_memory
from bpt.frozen_batches import PrefixBatches

SHAPE = VitShape(depth=3, width=32, tokens=17)


class Counted(TorchDispatchMode):
    """Floating-point operations of all matrix products."""

    total = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "bmm"):
            a, b = args[-2:]
            self.total += 2.0 * a.numel() * b.shape[-1]
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def backbone():
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)  # whose operations no dispatcher sees
    yield backbone_of(vit())
    timm.layers.set_fused_attn(bool(before))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "vpt", "num_prompts": 5},
        {"method": "vpt", "num_prompts": 5, "placement": "last:1"},
        {"method": "vpt", "num_prompts": 5, "placement": "deep"},
        {"method": "vpt", "num_prompts": 5, "placement": "first:2", "after": "drop"},
        {"method": "vpt", "num_prompts": 5, "placement": "1+1", "after": "drop"},
        {"method": "bitfit"},
        {"method": "full"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_an_epoch_costs_what_torch_counts(backbone, options):
    """With hooks on the blocks, which then compute all tokens, also those that nothing reads."""
    recipe = Recipe(epochs=1, batch_size=2, **options)
    model = build_model(recipe, backbone, 5).train()
    hooks = [block.register_forward_hook(lambda *_: None) for block in model.vit.blocks]
    with Counted() as counted:
        model(torch.randn(2, 3, SIZE, SIZE)).sum().backward()
    for hook in hooks:
        hook.remove()
    found = training_cost(recipe, (2, 0, 0), shape=SHAPE).operations
    assert counted.total == pytest.approx(found, rel=0.01)  # and the head
    with Counted() as counted:
        model(torch.randn(2, 3, SIZE, SIZE)).sum().backward()
    assert counted.total < 1.01 * found


def test_what_is_computed_once_costs_once():
    recipe = Recipe(method="vpt", num_prompts=5, placement="last:1", epochs=10, augmentation="flip")
    plain = replace(recipe, cache=False)
    sizes = (100, 20, 30)
    front = 2 * (24 * 17 * 32**2 + 4 * 17**2 * 32)  # of the two blocks before the prompt
    every = 10 * 100 + 10 * 20 + 30

    def saved(recipe, **given):
        dear = training_cost(replace(recipe, cache=False), sizes, shape=SHAPE).operations
        return (dear - training_cost(recipe, sizes, shape=SHAPE, **given).operations) / front

    assert saved(recipe) == pytest.approx(every - 2 * 100 - 20 - 30)
    assert saved(recipe, flip=False) == pytest.approx(every - 100 - 20 - 30)
    crops = replace(recipe, augmentation="crop")
    assert saved(crops) == pytest.approx(10 * 20 + 30 - 20 - 30)
    assert saved(replace(crops, views=4)) == pytest.approx(every - 4 * 100 - 20 - 30)
    assert saved(replace(recipe, protocol="authors")) == pytest.approx(
        10 * 120 + 10 * 30 + 30 - 2 * 120 - 30
    )
    for other in ({"mixup": 0.8}, {"placement": "shallow"}, {"epochs": 1, "warmup_epochs": 0}):
        changed = replace(recipe, **other)
        assert training_cost(changed, sizes, shape=SHAPE) == training_cost(
            replace(changed, cache=False), sizes, shape=SHAPE
        )
    linear = replace(Recipe(method="linear"), augmentation="flip")
    assert training_cost(linear, sizes, shape=SHAPE).operations == pytest.approx(250 * front * 1.5)
    tested = replace(linear, protocol="authors")  # features of the test images, once
    assert training_cost(tested, sizes, shape=SHAPE).operations == pytest.approx(
        (2 * 120 + 30) * front * 1.5
    )
    assert kept_images(plain, sizes) == 0


@pytest.mark.parametrize(
    "options",
    [{"augmentation": "flip"}, {"augmentation": "none"}, {"views": 2}, {}, {"protocol": "authors"}],
    ids=str,
)
def test_a_cache_holds_what_was_told_and_the_blocks_in_front_see_no_more(
    options, colours, tmp_path, monkeypatch
):
    seen, computed = 0, PrefixBatches._prefix

    def counted(self, images):
        nonlocal seen
        seen += len(images)
        return computed(self, images)

    monkeypatch.setenv("BPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(PrefixBatches, "_prefix", counted)
    recipe = Recipe(
        dataset=f"folder:{colours}", method="vpt", num_prompts=2, placement="last:2", epochs=3,
        batch_size=8, image_size=32, model="timm:test_vit", weights="random", **options,
    )  # fmt: skip
    sizes = dataset_sizes(recipe)
    bpt.train(recipe, tmp_path / "run", device="cpu")
    plan = bpt.plan_training(recipe, device="cpu")
    rows = [one.stat().st_size for one in (tmp_path / "cache").rglob("rows.npy")]
    assert plan.kept == kept_bytes(recipe, sizes, VitShape(6, 64, 5))
    assert plan.kept <= sum(rows) < plan.kept + 200 * len(rows)  # and a header each
    assert seen == kept_images(recipe, sizes) + 1  # and one to see the shape


@pytest.mark.parametrize("method", ["vpt", "full"])
def test_memory_is_about_what_autograd_keeps(method):
    """In float32 on a CPU; by saved tensors, each once, and the weights."""
    backbone = backbone_of(vit(depth=6, embed_dim=64, img_size=32))
    recipe = Recipe(method=method, batch_size=16, eval_batch_size=1)
    model = build_model(recipe, backbone, 5).train()
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.randn(16, 3, 32, 32)).sum()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    shape = VitShape(depth=6, width=64, tokens=65)
    told = training_memory(recipe, shape, trained=0, total=0)
    assert 0.6 * measured < told < 1.7 * measured


def test_the_cost_is_that_of_the_operations_of_a_vit():
    recipe = Recipe(dataset="cub", model="mae_vitb", epochs=100)
    cost = training_cost(recipe, dataset_sizes(recipe))
    # ViT-B/16 takes 17.6 G multiply-adds at 197 tokens without prompts (timm's benchmark tables
    # say 16.9 to 17.6), so 35.2 G operations; 297 tokens take 297/197 of it and a little more.
    per_image = cost.operations / (2 * 100 * 5394 + 100 * 600 + 5794)
    assert 35.0e9 * 297 / 197 < per_image < 1.1 * 35.2e9 * 297 / 197
    assert cost.images == 100 * (5394 + 600) + 5794


def test_later_prompts_and_linear_probes_cost_less_and_fine_tuning_more():
    def cost(**changes):
        recipe = Recipe(dataset="cub", model="mae_vitb", num_prompts=50, **changes)
        return training_cost(recipe, (1000, 0, 0)).operations

    shallow = cost()
    later = cost(placement="last:4", cache=False)  # with fewer tokens in front of the prompts
    assert 0.85 * shallow * (1 + 4 / 12) / 2 < later < shallow * (1 + 4 / 12) / 2
    assert cost(method="full") < 1.5 * shallow < 1.5 * cost(method="full")
    assert cost(method="linear") * 100 < shallow
    assert cost(checkpoint_activations=True) == pytest.approx(shallow * 3 / 2, rel=0.02)
    full = cost(method="full")
    assert cost(method="full", checkpoint_activations=True) == pytest.approx(full * 4 / 3)
    assert training_cost(Recipe(model="timm:vit_tiny_patch16_224"), (1, 1, 1)) is None


def test_a_cost_is_that_of_the_size_that_is_read():
    """At 32 pixels mae_tiny has 16 patches of its 64 and a class token."""
    recipe = Recipe(dataset="folder", method="linear", image_size=32)
    per_image = 12 * (24 * 17 * 192**2 + 4 * 17**2 * 192)
    assert training_cost(recipe, (5, 3, 2)).operations == 10 * per_image


@pytest.mark.parametrize("method", [name for name in bpt.METHODS if name != "bpt-bilinear"])
def test_a_plan_counts_what_is_trained_of_each_method(method, tmp_path):
    if method == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    recipe = Recipe(method=method, batch_size=8)
    plan = bpt.plan_training(recipe, device="cpu")
    real, width = burst.load_backbone("mae_tiny"), 192
    model = build_model(
        recipe,
        real,
        10,
        whitening={0: torch.ones(width) if method == "bpt-dwhiten" else torch.eye(width)},
        tokens={0: torch.zeros(100, width)},
    )
    assert plan.parameters == count_parameters(model)
    assert plan.images == (1000, 200, 597) and plan.steps == 125 and plan.seconds > 0
    assert not plan.files and plan.counted and plan.notes == ()


def test_a_plan_knows_a_model_of_ones_own(tmp_path, monkeypatch):
    source = """
from timm.models.vision_transformer import VisionTransformer

def small():
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
"""
    (tmp_path / "mine_of_a_plan.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(model="python:mine_of_a_plan:small", num_prompts=4, rank=2)
    plan = bpt.plan_training(recipe, device="cpu")
    assert (plan.depth, plan.blocks, plan.notes) == (2, (0,), ())
    assert plan.parameters["total"] > plan.parameters["trained"] > 0
