"""One epoch of training, and one evaluation."""

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from bpt.errors import NonFiniteLoss
from bpt.model import TrainedModule, trained_tensors
from bpt.optimisation import MovingAverage, make_optimizer, schedule
from bpt.recipe import Recipe
from bpt.tuning import PRECISIONS
from burst.distributed import gather, meet, rank_and_size, together
from burst.errors import EmptyResult, check_known

B = TypeVar("B")
T = TypeVar("T")
Labelled = tuple[Tensor, Tensor]  # (b, 3, H, W) images and (b,) labels

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CHECK_EVERY = 20  # steps between looks at the loss on a GPU: each look waits for it


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Products in `precision`, where that is not float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        loss: mean cross-entropy, in nats.
        accuracy: top-1, in percent.
        images: how many.
    """

    loss: float
    accuracy: float
    images: int


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy in percent over so many images: sqrt(p (1 - p) / n), in percent.

    >>> standard_error(50.0, 2500)
    1.0
    """
    share = accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    device: str | torch.device,
    precision: str = "float32",
) -> Scores:
    """Loss and top-1 accuracy over all processes' batches; each image counts once.

    Args:
        model: images (b, 3, H, W) -> logits (b, classes).
        batches: images, labels (b,), indices (b,); the parts of the processes do not overlap.
        device: where the model is.
        precision: "float32", "bfloat16" or "float16".

    Raises:
        UnknownName: a precision that is not known.
        EmptyResult: no image on any process.
        ImageError: an image cannot be read, on whichever process.
    """
    check_known("precision", precision, PRECISIONS)
    return classify(model, batches, device=torch.device(device), precision=precision)[0]


@torch.inference_mode()
def classify(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    device: torch.device,
    precision: str = "float32",
) -> tuple[Scores, Tensor]:
    """What `evaluate` gives, and (n, 2) int64: of each image the class named, and its own.

    The images of all processes, in order of their index. Arguments and errors as of `evaluate`.
    """

    def read() -> tuple[Tensor, Tensor]:
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        rows = [torch.empty(0, 3, dtype=torch.int64, device=device)]
        for images, answers, indices in batches:
            labels = answers.to(device, non_blocking=True)
            with autocast(device, precision):
                logits = model(images.to(device, non_blocking=True))
            sums += _tally(functional.cross_entropy(logits.float(), labels), logits, labels)
            places = indices.to(device, non_blocking=True)
            rows.append(torch.stack([places, logits.argmax(dim=1), labels], dim=1))
        return sums.cpu(), torch.cat(rows).cpu()

    sums, parts = zip(*together(read), strict=True)
    loss, correct, images_seen = torch.stack(sums).sum(dim=0).tolist()
    if not images_seen:
        raise EmptyResult("no image to evaluate on")
    rows = torch.cat(parts)
    scores = Scores(loss / images_seen, 100 * correct / images_seen, int(images_seen))
    return scores, rows[rows[:, 0].argsort(), 1:]


def add_up(mine: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on each."""
    if rank_and_size()[1] == 1:
        return mine
    return torch.stack(gather(mine.cpu())).sum(dim=0).to(mine.device)


@dataclass
class EpochState:
    """How far an epoch is: steps, seconds, and this process's sums.

    `sums` float64 are the loss, what else the trainer counts, and over steps this process's share
    of the norm of the prompts' gradient, which is the same on all; of a classifier loss, correct
    answers, images and norm.
    """

    sums: Tensor
    step: int = 0
    seconds: float = 0.0


class Trainer(ABC, Generic[B]):
    """Steps of an optimiser on a model's trained tensors, over batches B.

    Args:
        model: whose parameters are trained.
        network: what is called; the model itself, or wrapped for several processes or compiled.
        optimizer: over the trained parameters.
        prompts: their parameters, for the norm of their gradient.
        set_lr: called with the number of each step before it.
        precision: "float32", "bfloat16" or "float16"; the latter with a gradient scaler.
        accumulation: parts that a step's images are cut into.
        average: of the trained tensors, updated after each step.
    """

    counted: int  # what `loss` counts

    def __init__(
        self,
        model: TrainedModule,
        network: Callable[..., Any],
        optimizer: torch.optim.Optimizer,
        *,
        prompts: list[Tensor],
        set_lr: Callable[[int], None],
        device: torch.device,
        precision: str = "float32",
        accumulation: int = 1,
        average: MovingAverage | None = None,
    ) -> None:
        self.model, self.network, self.optimizer = model, network, optimizer
        self.prompts, self.set_lr, self.device = prompts, set_lr, device
        self.precision, self.accumulation, self.average = precision, accumulation, average
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.trained = trained_tensors(model)

    @abstractmethod
    def parts(self, batch: B) -> list[tuple[B, float]]:
        """The batch on the device, cut into `accumulation` parts; and the share of each."""

    @abstractmethod
    def loss(self, part: B) -> tuple[Tensor, Tensor]:
        """The mean loss of a part; and (counted,) float64, its sum over images and other counts."""

    def start(self) -> EpochState:
        """Nothing done yet."""
        return EpochState(torch.zeros(self.counted + 1, dtype=torch.float64, device=self.device))

    def train_epoch(
        self,
        batches: Iterable[B],
        *,
        first_step: int,
        done: EpochState,
        after_step: Callable[[EpochState], None],
    ) -> EpochState:
        """Run the rest of an epoch.

        Args:
            batches: this process's share of each step's images, from step `done.step` on.
            first_step: of the epoch, counted from the start of the training.
            done: how far the epoch is; goes on in place.
            after_step: called after each step; may save, or raise to end the training.

        Raises:
            NonFiniteLoss: the loss is infinite or NaN; it names what to change.
        """
        self.model.train()
        began = time.perf_counter()
        for batch in batches:
            self.set_lr(first_step + done.step)
            done.sums += self.step(batch)
            done.step += 1
            if self.device.type == "cpu" or done.step % CHECK_EVERY == 0:
                self.check(done.sums, done.step)
            now = time.perf_counter()
            done.seconds, began = done.seconds + now - began, now
            after_step(done)
        self.check(done.sums, done.step)  # and wait for what the GPU has still to do
        done.seconds += time.perf_counter() - began
        return done

    def step(self, batch: B) -> Tensor:
        """One step; what it adds to the sums of `EpochState`."""
        if isinstance(self.network, nn.parallel.DistributedDataParallel):
            meet()  # no process alone can leave the sum of the gradients
        total = torch.zeros(self.counted, dtype=torch.float64, device=self.device)
        parts = self.parts(batch)
        for number, (part, share) in enumerate(parts, start=1):
            with self._reduction(last=number == len(parts)):
                with autocast(self.device, self.precision):
                    loss, counts = self.loss(part)
                self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            total += counts
        self.scaler.unscale_(self.optimizer)
        grad_norm = self._prompt_grad_norm() / rank_and_size()[1]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.trained)
        return torch.cat([total, grad_norm.double().reshape(1)])

    def check(self, sums: Tensor, step: int) -> None:
        """Refuse to go on from a loss that is not finite.

        Raises:
            NonFiniteLoss: see there.
        """
        loss = float(sums[0])
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss} within {step} steps of the epoch; the last good state is "
                "kept. Lower lr, warm up longer (warmup_epochs), or train in precision float32"
            )

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, of every process: all of them must ask."""
        return {
            "model": {name: value.detach() for name, value in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state() if self.average else None,
            "random": gather((torch.get_rng_state(), _gpu_random_state(self.device))),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Each process takes its own random state. Of another number of processes none fits, and each
        keeps the one that it has.

        Raises:
            CheckpointError: see `TrainedModule.load_trained_state`.
        """
        self.model.load_trained_state(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load(state["average"])
        rank, world = rank_and_size()
        if len(state["random"]) == world:
            random, random_gpu = state["random"][rank]
            torch.set_rng_state(random)
            if random_gpu is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(random_gpu, self.device)

    def _reduction(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients travel between processes once a step, not once a part."""
        if last or not isinstance(self.network, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.network.no_sync()

    def _prompt_grad_norm(self) -> Tensor:
        gradients = [p.grad for p in self.prompts if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.device)
        # Infinite where the scaler of float16 skips the step.
        return nn.utils.get_total_norm(gradients).nan_to_num(posinf=0.0)


class ClassifierTrainer(Trainer[Labelled]):
    """Of a model of (b, 3, H, W) images -> logits, by the cross-entropy.

    Labels are (b,) int64, or (b, C) float32 shares of the classes, of which the largest counts as
    the right answer.
    """

    counted = 3  # loss, correct answers, images

    def __init__(self, *given: Any, label_smoothing: float = 0.0, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*given, **options)
        self.label_smoothing = label_smoothing

    def parts(self, batch: Labelled) -> list[tuple[Labelled, float]]:
        """Images and labels."""
        images, labels = (x.to(self.device, non_blocking=True) for x in batch)
        slices = cut(len(images), self.accumulation)
        return [((images[s], labels[s]), (s.stop - s.start) / len(images)) for s in slices]

    def loss(self, part: Labelled) -> tuple[Tensor, Tensor]:
        """Cross-entropy; its sum, correct answers, images."""
        images, labels = part
        logits = self.network(images)
        smoothing = self.label_smoothing
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        answers = labels.argmax(dim=1) if labels.ndim == 2 else labels
        return loss, _tally(loss.detach(), logits.detach(), answers)


def make_trainer(
    recipe: Recipe, model: TrainedModule, forward: Callable[[Tensor], Tensor], steps: int
) -> ClassifierTrainer:
    """The optimiser and all around it.

    Args:
        recipe: how.
        model: whose parameters are trained.
        forward: what gives logits of a batch: the model, compiled perhaps, or the head alone.
        steps: an epoch has.
    """
    device, rank = next(model.parameters()).device, rank_and_size()[0]
    torch.manual_seed(recipe.seed + rank)  # of what is dropped; each process drops others
    optimizer = make_optimizer(model, recipe)
    average = None
    if recipe.ema_decay is not None:
        average = MovingAverage(trained_tensors(model), recipe.ema_decay)
    prompts = getattr(model, "prompts", None)
    return ClassifierTrainer(
        model,
        shared(forward, device),
        optimizer,
        prompts=list(prompts.parameters()) if prompts is not None else [],
        set_lr=schedule(optimizer, recipe, steps).step_update,
        device=device,
        precision=recipe.precision,
        accumulation=recipe.accumulation,
        average=average,
        label_smoothing=recipe.label_smoothing,
    )


def shared(forward: Callable[..., T], device: torch.device) -> Callable[..., T]:
    """With gradients averaged over the processes, if there are several."""
    if rank_and_size()[1] == 1:
        return forward
    # The backbone is the same everywhere, and has no buffers that training changes.
    devices = [device.index] if device.type == "cuda" else None
    assert isinstance(forward, nn.Module)
    meet()  # nobody waits in there for a process that failed before
    with warnings.catch_warnings():  # newer versions of torch have a new name for the argument
        warnings.filterwarnings("ignore", message=".*broadcast_buffers")
        return nn.parallel.DistributedDataParallel(
            forward, device_ids=devices, broadcast_buffers=False
        )


def cut(count: int, parts: int) -> list[slice]:
    """`count` in order, in as many equal slices, up to one."""
    parts = min(parts, count)
    return [slice(n * count // parts, (n + 1) * count // parts) for n in range(parts)]


def _gpu_random_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _tally(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the loss, correct answers, images; float64."""
    # Filled in where the labels are: a copy of a number from here would wait for the GPU.
    count = torch.full((), len(labels), dtype=torch.float64, device=labels.device)
    correct = (logits.argmax(dim=1) == labels).sum()
    return torch.stack([loss.double() * count, correct.double(), count])
