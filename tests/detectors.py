"""Small detectors and what they learn from, for the tests of detection."""

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from bpt.detection.detector import Detector, DetectorOptions
from bpt.detection.objects import FRAME, Batch, Targets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Trunk(nn.Module):
    """In place of a ViT: one frozen layer, which stays in eval mode, and a trained shift."""

    width, stride = 12, 16

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.vit = nn.Conv2d(3, self.width, self.stride, self.stride)
        self.vit.eval().requires_grad_(False)
        self.prompt = nn.Parameter(torch.zeros(self.width, 1, 1))
        self.images = None  # of the last call

    def forward(self, images):
        self.images = images
        return self.vit(images) + self.prompt

    def train(self, mode=True):
        super().train(mode)
        self.vit.eval()
        return self


def detector(kind="mask-rcnn", *, num_classes=3, seed=0, trunk=None, **options):
    options = {"channels": 8, "hidden": 16} | options
    chosen = DetectorOptions(detector=kind, num_classes=num_classes, **options)
    generator = torch.Generator().manual_seed(seed)
    return Detector(trunk or Trunk(), chosen, mean=MEAN, std=STD, generator=generator)


def targets(*objects):
    """Of (label, x0, y0, x1, y1); each fills the left half of its box."""
    rows = torch.tensor(objects, dtype=torch.float32).reshape(-1, 5)
    masks = torch.zeros(len(rows), FRAME, FRAME, dtype=torch.uint8)
    masks[:, :, : FRAME // 2] = 255
    return Targets(rows[:, 1:], rows[:, 0].long(), masks)


TWO = targets((1, 10, 12, 50, 60), (3, 40, 30, 90, 64))
NONE = targets()


def batch(*of_images, side=96, seed=0):
    """Noise with the targets; each image is 8 rows and 16 columns smaller than the batch."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(of_images), 3, side, side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Batch(images, ((side - 8, side - 16),) * len(of_images), of_images)


def maps(channels=8, *, side=96, images=2, seed=0):
    """Noise in the shape of a pyramid."""
    generator = torch.Generator().manual_seed(seed)
    sides = [side // 4, side // 8, side // 16, side // 32, -(-side // 64)]
    return [torch.randn(images, channels, s, s, generator=generator) for s in sides]


def random_boxes(count, *, side=96, least=1.0, seed=0):
    """(count, 4), some of which reach beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    extent = least + torch.rand(count, 2, generator=generator) * side / 2
    return torch.cat([corner, corner + extent], dim=1)


def overlap(a, b):
    """Intersection over union of two boxes, in plain Python."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a, b
    inside = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return inside / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inside)


def kept(forward, numbers):
    """How many results of so many numbers wait for the backward pass."""
    found = {}

    def pack(tensor):
        found[tensor.data_ptr()] = tensor.numel() == numbers
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    assert result.requires_grad
    return sum(found.values())
