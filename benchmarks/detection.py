"""What does a detector's step take, in time and memory, next to torchvision's Mask R-CNN?

    python benchmarks/detection.py                  # ViT-B of random weights, 512 pixels, 2 images
    python benchmarks/detection.py --device cuda --size 1024 --precision bfloat16

torchvision's is `torchvision.models.detection.MaskRCNN` on the same frozen backbone and the same
pyramid, with heads of the same layers (two convolutions for proposals, four and a hidden layer for
boxes, four for masks, LayerNorm), 80 classes, the same images and objects. The rest is as each of
them has it: torchvision pools and pastes its own way, takes masks of the size of the image, and
hands 2,000 proposals on; ours is `bpt.Detector`. Then what prompts add.

Each way runs in processes of its own, which take turns; a training step and an inference too. Time
is the median over them; memory the highest that a first step had beyond weights and images: of the
process, with freed memory given back at once, or what PyTorch allocated on a GPU.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import AnchorGenerator, RPNHead

import burst
from bpt import Batch, DetectionRecipe, Detector, Targets, build_detector
from bpt.detection.objects import FRAME
from bpt.engine import autocast

CLASSES, OBJECTS = 80, 10
TARGETS = {"time": 1.0, "memory": 0.7}
PEER, OURS = "torchvision", "ours, no prompt"
CASES = ("train", "inference")
# Of the C library: what is freed goes back to the system, so that a process shows what it needs.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
WAYS = {
    OURS: {"method": "linear"},
    "ours, 100 prompts": {"method": "bpt-bilinear"},
    "ours, 100 prompts, last:4": {"method": "bpt-bilinear", "placement": "last:4"},
    "ours, 100 prompts, recomputed": {"method": "bpt-bilinear", "recompute": True},
    "ours, cascade, no prompt": {"method": "linear", "detector": "cascade"},
}


def detector(way: str, options: argparse.Namespace) -> Detector:
    backbone = burst.load_backbone(options.model, "random", device=options.device)
    recipe = DetectionRecipe(
        model=options.model, image_size=options.size, **WAYS.get(way, WAYS[OURS])
    )
    return build_detector(recipe, backbone, CLASSES)


def scene(options: argparse.Namespace) -> Batch:
    """Noise, with objects of 16 pixels to a third of the image."""
    generator = torch.Generator().manual_seed(0)
    size, targets = options.size, []
    for _ in range(options.batch):
        extent = 16 + torch.rand(OBJECTS, 2, generator=generator) * (size / 3 - 16)
        corner = torch.rand(OBJECTS, 2, generator=generator) * (size - extent)
        labels = torch.randint(1, CLASSES + 1, (OBJECTS,), generator=generator)
        masks = torch.full((OBJECTS, FRAME, FRAME), 255, dtype=torch.uint8)
        targets.append(Targets(torch.cat([corner, corner + extent], 1), labels, masks))
    shape = (options.batch, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Batch(images, ((size, size),) * options.batch, tuple(targets)).to(
        torch.device(options.device)
    )


class Maps(nn.Module):
    """The trunk and the pyramid, as torchvision asks for them."""

    out_channels = 256

    def __init__(self, ours: Detector) -> None:
        super().__init__()
        self.trunk, self.pyramid = ours.trunk, ours.pyramid

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """By level."""
        maps = self.pyramid(self.trunk(images))
        return OrderedDict((str(level), one) for level, one in enumerate(maps))


def peer(options: argparse.Namespace, batch: Batch) -> tuple[nn.Module, Callable, Callable]:
    """torchvision's model, its training step and its inference."""
    sides, ratios = ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5
    model = MaskRCNN(
        Maps(detector(PEER, options)),
        CLASSES + 1,
        min_size=options.size,
        max_size=options.size,
        rpn_anchor_generator=AnchorGenerator(sides, ratios),
        rpn_head=RPNHead(256, 3, conv_depth=2),
        box_head=FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=LayerNorm2d),
        mask_head=MaskRCNNHeads(256, [256] * 4, 1, norm_layer=LayerNorm2d),
    ).to(options.device)
    images = [image.float() / 255 for image in batch.images]
    targets = []
    for one in batch.targets:
        masks = torch.zeros(len(one), options.size, options.size, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, one.boxes.round().int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        masks = masks.to(options.device)
        targets.append({"boxes": one.boxes, "labels": one.labels, "masks": masks})

    def losses() -> Tensor:
        return sum(model.train()(images, targets).values())

    return model, losses, lambda: model.eval()(images)


def ours(
    way: str, options: argparse.Namespace, batch: Batch
) -> tuple[nn.Module, Callable, Callable]:
    model = detector(way, options)
    return model, lambda: sum(model.losses(batch).values()), lambda: model.detect(batch)


class Peak:
    """The most memory in use while it is entered, beyond what was, in MiB."""

    def __init__(self, device: str) -> None:
        self.cuda, self.highest = device.startswith("cuda"), 0.0

    def __enter__(self) -> "Peak":
        self.before = self._used()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self.ended = threading.Event()
            self.watcher = threading.Thread(target=self._watch)
            self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            self.highest = torch.cuda.max_memory_allocated() / 2**20
        else:
            self.ended.set()
            self.watcher.join()
        self.highest -= self.before

    def _used(self) -> float:
        if self.cuda:
            return torch.cuda.memory_allocated() / 2**20
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    def _watch(self) -> None:
        while not self.ended.wait(0.002):
            self.highest = max(self.highest, self._used())


def measure(way: str, case: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of a training step or of an inference, in this process."""
    torch.manual_seed(0)
    batch, device = scene(options), torch.device(options.device)
    model, losses, detect = peer(options, batch) if way == PEER else ours(way, options, batch)

    def train() -> None:
        with autocast(device, options.precision):
            loss = losses()
        loss.backward()
        model.zero_grad(set_to_none=True)

    def find() -> None:
        with torch.no_grad(), autocast(device, options.precision):
            detect()

    work = train if case == "train" else find
    with Peak(options.device) as peak:
        work()  # the first warms up
    times = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return {f"{case} s": statistics.median(times), f"{case} MiB": peak.highest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mae_vitb")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="steps of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way")
    parser.add_argument("--out", type=Path, help="a CSV")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # of a child
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.case, options)))
        return
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}; {vars(options)}\n")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in (PEER, *WAYS)}
    for _ in range(options.rounds):
        for way, rounds in found.items():
            rounds.append({})
            for case in CASES:
                command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--case", case]
                text = subprocess.run(
                    command, check=True, capture_output=True, text=True, env=os.environ | RETURNED
                ).stdout
                rounds[-1] |= json.loads(text.splitlines()[-1])
    rows = []
    for way, rounds in found.items():
        row = {"way": way}
        for name in rounds[0]:
            row[name] = statistics.median(one[name] for one in rounds)
            row[f"{name} / {PEER}"] = row[name] / statistics.median(
                one[name] for one in found[PEER]
            )
        rows.append(row)
    print(f"{'':32s}{'train s':>9s}{'MiB':>8s}{'inference s':>13s}{'MiB':>8s}    times torchvision")
    for row in rows:
        cells = [row[name] for name in ("train s", "train MiB", "inference s", "inference MiB")]
        ratios = [row[f"{name} / {PEER}"] for name in found[PEER][0]]
        print(
            f"{row['way']:32s}{cells[0]:9.2f}{cells[1]:8.0f}{cells[2]:13.2f}{cells[3]:8.0f}    "
            + "  ".join(f"{one:.2f}" for one in ratios)
        )
    mine = next(row for row in rows if row["way"] == OURS)
    print()
    for name in found[PEER][0]:
        target = TARGETS["time" if name.endswith("s") else "memory"]
        ratio = mine[f"{name} / {PEER}"]
        print(
            f"{name}: {ratio:.2f} times, target {target}: {'met' if ratio <= target else 'MISSED'}"
        )
    if options.out:
        with options.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
