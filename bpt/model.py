"""A frozen timm ViT with prompts in front of chosen blocks, and a linear head."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from bpt.gates import Gates
from bpt.heads import HEADS, NormedHead, started_head
from bpt.partial_block import is_known, partial_block
from bpt.pooling import choose_pooling, final_norm, pool, read_rows
from bpt.prompt import PlainPrompt, PromptModule
from burst.adapters import num_prefix_tokens
from burst.backbone import Backbone
from burst.errors import BurstError, CheckpointError, ShapeError, UnsupportedModel, check_known

AFTER = ("carry", "drop")
NORM = "head.norm."  # what the names of a `NormedHead`'s running mean and variance begin with


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name, not copied: parameters, and what a head's norm counts."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    counted = {name: b for name, b in model.named_buffers() if name.startswith(NORM)}
    return parameters | counted


class TrainedModule(nn.Module):
    """A model of which the trained tensors alone are kept."""

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of what is trained, by name: `prompts.BLOCK....`, `head.weight`, `head.bias`."""
        return {name: value.detach().clone() for name, value in trained_tensors(self).items()}

    @torch.no_grad()
    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `trained_state` gave.

        Raises:
            CheckpointError: a tensor is missing, unexpected, of another shape or another kind of
                numbers; nothing is taken over then.
        """
        own = trained_tensors(self)
        wrong = [
            *(f"{name} is missing" for name in own if name not in state),
            *(f"{name} is unexpected" for name in state if name not in own),
            *(
                f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
                for name in own
                if name in state and state[name].shape != own[name].shape
            ),
            *(
                f"{name} is of {state[name].dtype}, expected {own[name].dtype}"
                for name in own
                if name in state
                and state[name].is_floating_point() != own[name].is_floating_point()
            ),
        ]
        if wrong:
            raise CheckpointError(f"these tensors do not fit the model: {'; '.join(wrong)}")
        for name, parameter in own.items():
            parameter.copy_(state[name])


class PromptedTokens(TrainedModule):
    """A frozen backbone with prompts in front of chosen blocks, up to its last block.

    A prompt stands behind the class token (and registers), without position embedding. Where
    a later block has one too, its tokens take the places of the old ones; behind the last
    prompted block they are carried on, or dropped. Each prompt is computed once a call, whatever
    the batch, and what lies before the first prompted block runs without autograd. The user's
    model stays as it is: frozen, class token and position embedding too, and in eval mode also in
    training.

    Args:
        backbone: its model must be a timm VisionTransformer.
        prompts: block -> its prompt; all of the same number of tokens of the model's width.
        after: "carry" or "drop", of prompt tokens behind the last prompted block.
        dropout: of the prompts' values in training, drawn anew for each image.
        gates: of GateVPT; the backbone is then one of its own, which shares the weights.

    Raises:
        UnsupportedModel: another class of model, or one whose attention cannot have temperatures.
        ShapeError: a prompt of another width, prompts of different numbers, a block that the model
            does not have.
        UnknownName: an `after` that is not known.
        BurstError: a dropout out of range.

    Source: Jia et al. 2022, arXiv 2203.12119 (prompts); Wang et al. 2025, arXiv 2506.22908.
    """

    checkpoint_activations = False  # see `Machine`

    def __init__(
        self,
        backbone: Backbone,
        prompts: Mapping[int, PromptModule],
        *,
        after: str = "carry",
        dropout: float = 0.0,
        gates: Gates | None = None,
    ) -> None:
        super().__init__()
        self.gates, self.dropout = gates, dropout  # before the ViT, which has temperatures too
        vit = plain_vit(backbone).eval().requires_grad_(False)
        self.vit = gates.tempered(vit) if gates else vit
        self.info = backbone
        self.prefix = num_prefix_tokens(self.vit)
        self.prompts = nn.ModuleDict({str(block): prompts[block] for block in sorted(prompts)})
        self.num_prompts = self._check_prompts(prompts)
        check_known("after", after, AFTER)
        if not 0 <= dropout < 1:
            raise BurstError(f"dropout is {dropout}; it must lie in 0..1, without 1")
        self.after = after

    @property
    def width(self) -> int:
        """d."""
        width: int = self.vit.embed_dim
        return width

    @property
    def blocks(self) -> tuple[int, ...]:
        """The prompted blocks, ascending."""
        return tuple(int(block) for block in self.prompts)

    @property
    def first_block(self) -> int:
        """The first that a prompt stands in front of; without prompts, how many there are."""
        return self.blocks[0] if self.blocks else len(self.vit.blocks)

    @property
    def has_frozen_prefix(self) -> bool:
        """Whether blocks stand in front of the first prompted one, and nothing in them trains."""
        blocks = self.vit.blocks[: self.first_block]
        return len(blocks) > 0 and not any(one.requires_grad for one in blocks.parameters())

    def tokens(self, images: Tensor) -> tuple[Tensor, int]:
        """(B, N, d), the tokens behind the last block, and how many of them are prompts'.

        Class token and registers come first, then prompts, then patches.

        Args:
            images: (B, 3, H, W) normalised, or what `prefix_tokens` makes of them, perhaps rounded
                to bfloat16.
        """
        if self.gates is not None:
            self.gates.project()
        return self._behind_prefix(self._in_front(images))

    def _in_front(self, images: Tensor) -> Tensor:
        return images.float() if images.ndim == 3 else self.prefix_tokens(images)

    @torch.no_grad()
    def prefix_tokens(self, images: Tensor) -> Tensor:
        """(B, N, d), the tokens in front of the first prompted block: no prompt changes them."""
        x: Tensor = self.vit._pos_embed(self.vit.patch_embed(images))
        x = self.vit.norm_pre(x)
        for block in self.vit.blocks[: self.first_block]:
            x = block(x)
        return x

    def _behind_prefix(self, x: Tensor) -> tuple[Tensor, int]:
        present = 0
        for index in range(self.first_block, len(self.vit.blocks)):
            if index in self.blocks:
                x, present = self._prompted(x, index, present), self.num_prompts
            before, block = x, self.vit.blocks[index]
            x = run_block(block, x, checkpointed=self.checkpoint_activations)
            if self.gates is not None:
                x = self.gates.mixed(index, before, x, slice(self.prefix, self.prefix + present))
            if self.after == "drop" and index == self.blocks[-1]:
                x, present = self._without_prompts(x, present), 0
        return x, present

    def train(self, mode: bool = True) -> Self:
        """Training mode of what is trained; the backbone stays in eval mode."""
        self.training = mode
        for child in self.children():
            if child is not self.vit:
                child.train(mode)
        if self.vit.training:  # each module of it is asked only then: a fifth of a probe's time
            self.vit.eval()
        return self

    def prompt_values(self) -> dict[int, Tensor]:
        """Block -> the (m, d) tokens of its prompt, detached."""
        return {block: self.prompts[str(block)]().detach().clone() for block in self.blocks}

    def plain_prompts(self) -> dict[int, PlainPrompt]:
        """Block -> the same tokens as a prompt of their own."""
        return {block: PlainPrompt(values) for block, values in self.prompt_values().items()}

    def _prompt(self, x: Tensor, block: int) -> Tensor:
        """The block's prompt, as tokens like (B, N, d): (1, m, d), or with dropout (B, m, d)."""
        values: Tensor = self.prompts[str(block)]().to(x.dtype)[None]
        if self.dropout and self.training:
            values = functional.dropout(values.expand(x.shape[0], -1, -1), self.dropout)
        return values

    def _prompted(self, x: Tensor, block: int, present: int) -> Tensor:
        """Tokens with the block's prompt in place of the `present` prompt tokens."""
        # len() would fix it in torch.export
        prompt = self._prompt(x, block).expand(x.shape[0], -1, -1)
        return torch.cat([x[:, : self.prefix], prompt, x[:, self.prefix + present :]], dim=1)

    def _without_prompts(self, x: Tensor, present: int) -> Tensor:
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + present :]], dim=1)

    def _check_prompts(self, prompts: Mapping[int, PromptModule]) -> int:
        """How many tokens each prompt has."""
        depth = len(self.vit.blocks)
        if outside := [block for block in prompts if not 0 <= block < depth]:
            raise ShapeError(f"no block {outside[0]}; {self.info.name} has blocks 0 to {depth - 1}")
        with torch.no_grad():
            shapes = {tuple(prompt().shape) for prompt in prompts.values()}
        if len(shapes) > 1 or any(width != self.width for _, width in shapes):
            raise ShapeError(f"prompts of shapes {sorted(shapes)}, expected one (m, {self.width})")
        return max((m for m, _ in shapes), default=0)


class PromptedViT(PromptedTokens):
    """Prompts and a linear head on a frozen backbone; without prompts, the model of a linear probe.

    Args:
        backbone, prompts, after, dropout, gates: see `PromptedTokens`.
        num_classes: outputs of the head.
        pooling: what the head reads. "prompts+patches", "patches" or "prompts": the mean of these
            tokens behind the last block, then the pretrained norm; "token": norm, then the class
            token; "default": "prompts+patches" where `backbone.pooling` is "avg", else "token".
        head_std: of the head's truncated normal start; its bias starts at 0.
        checkpoint_activations: see `Machine`.
        head_norm: "batch" for a `NormedHead`, or "none".
        generator: of the head's start; with one the global random state is left alone.

    Raises:
        UnsupportedModel: a pooling that the model cannot have; and see `PromptedTokens`.
        UnknownName: a pooling or a norm of the head that is not known.
        BurstError: pooling "prompts" without prompts behind the last block.
        ShapeError: see `PromptedTokens`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Mapping[int, PromptModule],
        num_classes: int,
        *,
        pooling: str = "default",
        after: str = "carry",
        dropout: float = 0.0,
        gates: Gates | None = None,
        head_std: float = 0.02,
        checkpoint_activations: bool = False,
        head_norm: str = "none",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(backbone, prompts, after=after, dropout=dropout, gates=gates)
        self.checkpoint_activations = checkpoint_activations
        self.pooling = choose_pooling(backbone, pooling)
        if self.pooling == "prompts" and (not prompts or after == "drop"):
            raise BurstError("pooling prompts needs prompts that are carried to the last block")
        check_known("head_norm", head_norm, HEADS)
        self.head = started_head(HEADS[head_norm], self.width, num_classes, head_std, generator)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images, or see `tokens` -> (B, num_classes) logits."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """(B, d): what the head reads of (B, 3, H, W) normalised images, or see `tokens`."""
        known = self.gates is None and all(map(is_known, self.vit.blocks[self.first_block :]))
        if not self.blocks or not known:
            x, present = self.tokens(images)
            return pool(self.vit, x, self.pooling, prefix=self.prefix, prompts=present)
        read = self._read_behind(self._in_front(images))
        mean: Tensor = final_norm(self.vit)(read.mean(dim=1))
        return mean

    def _read_behind(self, x: Tensor) -> Tensor:
        """(B, n, d): the tokens behind the last block that the pooling reads.

        As `tokens`, but for the outputs of blocks that nothing reads; up to rounding the same.
        """
        present, last = 0, len(self.vit.blocks) - 1  # prompt tokens in x
        for index in range(self.first_block, len(self.vit.blocks)):
            prompt = self._prompt(x, index) if index in self.blocks else None
            replaced = index + 1 in self.blocks
            if prompt is not None and present:
                x, present = self._without_prompts(x, present), 0
            rows, with_prompt = slice(None), not replaced
            if index == last:
                rows = read_rows(self.pooling, prefix=self.prefix, prompts=present)
                with_prompt = self.pooling.startswith("prompts")
            if self.after == "drop" and index == self.blocks[-1]:
                with_prompt = False
            with_prompt = with_prompt and prompt is not None
            at = (0 if rows.start else self.prefix) if with_prompt else None
            x = self._run_partly(index, x, prompt, rows, at)
            present += self.num_prompts if with_prompt else 0
        return x

    def _run_partly(
        self, block: int, x: Tensor, prompt: Tensor | None, rows: slice, at: int | None
    ) -> Tensor:
        run = partial(partial_block, self.vit.blocks[block], rows=rows, at=at)
        if self.checkpoint_activations and torch.is_grad_enabled():
            found: Tensor = checkpoint(run, x, prompt, use_reentrant=False)
            return found
        return run(x, prompt)

    def folded(self) -> "PromptedViT":
        """As in evaluation, with plain tokens as prompts and no norm in the head.

        The backbone is shared; device and mode are those that it is in.
        """
        classes, pooling, after = self.head.out_features, self.pooling, self.after
        gates, prompts = copy.deepcopy(self.gates), self.plain_prompts()
        model = PromptedViT(
            self.info,
            prompts,
            classes,
            pooling=pooling,
            after=after,
            gates=gates,
            generator=torch.Generator(),  # else it draws from the global one
        ).to(self.head.weight.device)
        head = self.head.folded() if isinstance(self.head, NormedHead) else self.head
        model.head.load_state_dict(head.state_dict())
        return model.train(self.training)


def run_block(block: nn.Module, x: Tensor, *, checkpointed: bool) -> Tensor:
    """A block's output; checkpointed, what it computed in between is not kept for the way back.

    The random state is, so that paths which are dropped are the same when it is computed again.

    Source: Chen et al. 2016, arXiv 1604.06174.
    """
    if checkpointed and torch.is_grad_enabled():
        x = checkpoint(block, x, use_reentrant=False)
    else:
        x = block(x)
    return x


def plain_vit(backbone: Backbone) -> VisionTransformer:
    """The backbone's model, if prompts and heads can be put on it.

    Raises:
        UnsupportedModel: another class of model, or one that pools by attention.
    """
    model = backbone.model
    if not isinstance(model, VisionTransformer):
        library = type(model).__module__.partition(".")[0]
        raise UnsupportedModel(
            f"{backbone.name} is a {type(model).__name__} of {library}; "
            f"prompts need a timm VisionTransformer"
        )
    if getattr(model, "attn_pool", None) is not None:
        raise UnsupportedModel(f"{backbone.name} pools by attention; prompts cannot be read there")
    return model
