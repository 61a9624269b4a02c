"""GateVPT: how much of each block's work on the prompt is kept, and how sharply blocks attend.

Behind each block but the last, the prompt becomes g (what the block made of it) + (1 - g) (what it
read), g = sigmoid(logit); class token, registers and patches are left alone. In every block, of all
tokens and heads, attention is softmax(q k^T / (sqrt(d_h) tau)).
Source: Yoo et al., "Improving Visual Prompt Tuning for Self-supervised Vision Transformers", ICML
2023, arXiv 2306.05067; as ryongithub/GatedPromptTuning@dd7d1ea computes it.
"""

import copy
import math

import torch
from timm.models import vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from burst.errors import BurstError, UnsupportedModel

LOWEST, HIGHEST = 0.01, 10.0  # temperatures
START = 10.0


class Gates(nn.Module):
    """One gate for each block but the last, and one temperature for each: 2 L - 1 numbers.

    `logits` (L - 1,) and `temperatures` (L,), float32, are what is trained.

    Args:
        depth: L, blocks of the ViT.
        start: minus the logits at the start; 10 lets every block see almost the same prompt.

    Raises:
        BurstError: `depth` is not positive, or `start` not finite.

    Source: Yoo et al. 2023, arXiv 2306.05067.
    """

    def __init__(self, depth: int, *, start: float = START) -> None:
        super().__init__()
        if depth < 1:
            raise BurstError(f"depth is {depth}; it must be at least 1")
        if not math.isfinite(start):
            raise BurstError(f"gate_init is {start}; it must be finite")
        self.logits = nn.Parameter(torch.full((depth - 1,), -float(start)))
        self.temperatures = nn.Parameter(torch.ones(depth))

    @torch.no_grad()
    def project(self) -> None:
        """Bring the temperatures back into 0.01..10, in place: before every forward."""
        if not torch.compiler.is_exporting():  # those of a program do not change any more
            # By `data`: a second forward before the way back of the first changes nothing.
            self.temperatures.data.clamp_(LOWEST, HIGHEST)

    def mixed(self, block: int, before: Tensor, after: Tensor, rows: slice) -> Tensor:
        """(B, N, d) `after` a block, its `rows` of the prompt mixed with those `before` it.

        g after + (1 - g) before with the block's gate g; behind the last block, which has none,
        `after` itself.
        """
        if block >= len(self.logits):
            return after
        gate = self.logits[block].sigmoid()
        prompt = gate * after[:, rows] + (1 - gate) * before[:, rows]
        return torch.cat([after[:, : rows.start], prompt, after[:, rows.stop :]], dim=1)

    def tempered(self, vit: VisionTransformer) -> VisionTransformer:
        """The same ViT with the temperatures in it; its weights are shared, and it stays as it is.

        Raises:
            UnsupportedModel: the queries of a block are not known to pass where a temperature can
                act on them.
        """
        shared = {id(one): one for one in (*vit.parameters(), *vit.buffers())}
        tempered: VisionTransformer = copy.deepcopy(vit, shared)
        for index, block in enumerate(tempered.blocks):
            attention = getattr(block, "attn", None)
            if type(attention) is not vision_transformer.Attention:  # type: ignore[attr-defined]
                kind = type(block if attention is None else attention).__name__
                raise UnsupportedModel(
                    f"blocks.{index} attends in a {kind} of timm, whose temperature cannot be "
                    "set; choose another method than gatevpt, or a ViT with timm's plain Attention"
                )
            attention.q_norm = _Tempered(attention.q_norm, self.temperatures, index)
        return tempered.eval()


class _Tempered(nn.Module):
    """The norm of queries, or none, and then queries / tau: behind it both of timm's paths go on.

    As for any shared weight, `temperatures` belongs to this module as well as to `Gates`.
    """

    def __init__(self, norm: nn.Module, temperatures: nn.Parameter, block: int) -> None:
        super().__init__()
        self.norm, self.temperatures, self.block = norm, temperatures, block

    def forward(self, queries: Tensor) -> Tensor:
        normed: Tensor = self.norm(queries)
        tau = self.temperatures[self.block]
        # A graph of torch 2.9 may read it before it was brought back; the gradient is that of tau.
        held = tau.detach()
        return normed / (tau + (held.clamp(LOWEST, HIGHEST) - held))
