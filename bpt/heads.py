"""Linear heads, as they start."""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


def started_head(
    kind: type[nn.Linear],
    width: int,
    num_classes: int,
    std: float,
    generator: torch.Generator | None,
) -> nn.Linear:
    """A head (width, num_classes) at its start: truncated normal weights, a bias of 0.

    Args:
        kind: its class.
        std: of the normal distribution.
        generator: of the weights; then the global random state is left alone.
    """
    # What a linear layer draws is not kept. Generators are of the CPU, whatever the default device.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        head = kind(width, num_classes)
    nn.init.trunc_normal_(head.weight, std=std, generator=generator)
    nn.init.zeros_(head.bias)
    return head


class NormedHead(nn.Linear):
    """A linear layer behind batch normalisation without weights of its own, as MAE probes.

    In training each process normalises by its own share of the batch, which must be two images or
    more; in evaluation by the running mean and variance, which move a tenth of the way each step.

    Source: He et al. 2022, arXiv 2111.06377, main_linprobe.py.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.norm.num_batches_tracked = None  # the momentum does not depend on it

    def forward(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, num_classes)."""
        return super().forward(self.norm(features))

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The same function of evaluation in one matrix and one bias."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        weight = self.weight.double() / (variance.double() + self.norm.eps).sqrt()
        shape, device = (self.in_features, self.out_features), self.weight.device
        head: nn.Linear = skip_init(nn.Linear, *shape, device=device)  # type: ignore[no-untyped-call]
        head.weight.copy_(weight)
        head.bias.copy_(self.bias.double() - weight @ mean.double())
        return head


HEADS: dict[str, type[nn.Linear]] = {"none": nn.Linear, "batch": NormedHead}
"""By what normalises its features, the head."""
