"""A training from its first or its resumed step to its result, whatever is trained.

What it saves, when, and in which order: so that a kill at any moment loses nothing.
"""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bpt import run_folder as folder
from bpt.configuration import existing_result
from bpt.dataset import Benchmark
from bpt.engine import EpochState, Trainer, add_up
from bpt.errors import Interrupted, NonFiniteLoss
from bpt.model import TrainedModule
from bpt.signals import Signals, resume_command
from bpt.tuning import Tuning
from burst.device import choose_device
from burst.distributed import agreed, gather, rank_and_size
from burst.errors import BurstError, CheckpointError, OutputError
from burst.files import remove_leftovers, save_json
from burst.progress import Progress, Say
from burst.whitening_file import load_whitening

T = TypeVar("T")
B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)
R = TypeVar("R", bound=Tuning)
SAVE_EVERY = 600.0  # seconds between states that are kept within an epoch
DUE = 1  # one is to be kept; no signal that is watched has this number
LONG = 60.0  # seconds of an epoch that are not risked in its evaluation, which can fail


class Epochs(Protocol[B_co]):
    """Where a training's batches come from."""

    steps: int

    def train(self, epoch: int, start: int) -> Iterable[B_co]:
        """This process's share of the epoch's batches, from batch `start` on."""


class Session(ABC, Generic[R, B]):
    """One training. It needs `_open`, `_build`, `_finish`, `_result` and how to speak of an epoch.

    Args:
        recipe: what and how.
        out: the run folder.
        device: "auto", "cpu", "cuda", ...
        progress: called as progress(steps done, steps in all).
        say: called with a line now and then.
    """

    model: TrainedModule
    trainer: Trainer[B]
    epochs: Epochs[B]
    config: dict[str, Any]

    def __init__(
        self,
        recipe: R,
        out: Path,
        device: torch.device,
        progress: Progress | None,
        say: Say | None,
    ) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.progress, self.say = progress or (lambda *_: None), say or (lambda _: None)
        self.writes = rank_and_size()[0] == 0
        self.opened: Benchmark | None = None  # the recipe's dataset, where it is open already
        self.begun: Tuning | None = None  # the recipe of the run that goes on
        self.metrics: list[dict[str, Any]] = []
        self.epoch, self.seconds = 0, 0.0
        self.signals = Signals()

    @classmethod
    def train(
        cls,
        recipe: R,
        out: str | Path,
        *,
        device: str = "auto",
        resume: bool = False,
        until: int | None = None,
        progress: Progress | None = None,
        say: Say | None = None,
        opened: Benchmark | None = None,
    ) -> dict[str, Any]:
        """Train, or go on, and leave a run folder; what result.json holds, see `run`.

        Whoever calls has locked the folder: no other process trains in it.

        Raises:
            RunExists, NonFiniteLoss, Interrupted, BurstError: see `bpt.train`.
        """
        chosen = choose_device(device)
        if rank_and_size()[0] > 0:
            progress = say = None
        session = cls(recipe, Path(out), chosen, progress, say)
        if session.writes:
            remove_leftovers(Path(out))
        session.opened = opened
        return session.open(resume=resume) or session.run(until)

    @abstractmethod
    def _open(self) -> None:
        """Open data and backbone, refuse what cannot be built, fill in `config`."""

    @abstractmethod
    def _build(self) -> None:
        """Fill in `model`, `epochs` and `trainer`, and the numbers of parameters in `config`."""

    @abstractmethod
    def _evaluated(self, done: EpochState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What an epoch's line says beside its number and its times; and the trained tensors."""

    @abstractmethod
    def _is_best(self, line: Mapping[str, Any]) -> bool:
        """Whether the tensors of this epoch are those to keep."""

    @abstractmethod
    def _result(self) -> dict[str, Any]:
        """Evaluate what was kept, and write result.json."""

    @abstractmethod
    def _spoken(self, line: Mapping[str, Any]) -> str:
        """An epoch's line for people."""

    @property
    def total_steps(self) -> int:
        """Of the whole training."""
        return self.recipe.total_epochs * self.epochs.steps

    def open(self, *, resume: bool) -> dict[str, Any] | None:
        """Open data, backbone and folder; gives the result if the training is at its end."""
        going_on = resume and (self.out / folder.CONFIG).exists()
        self.begun = agreed(lambda: folder.open_run(self.out).recipe if going_on else None)
        self._open()
        self._check_processes()
        return agreed(lambda: existing_result(self.out, self.recipe, self.config, resume=resume))

    def _check_processes(self) -> None:
        """That they share a batch evenly, and opened the same: else they would not step together.

        Raises:
            BurstError: it names what differs.
        """
        size, world = self.recipe.batch_size, rank_and_size()[1]
        if size % world:
            raise BurstError(f"batch_size {size} does not divide by {world} processes")
        first, *others = gather(folder.identity(self.config))
        for rank, one in enumerate(others, start=1):
            if differing := [what for what, found in first.items() if one[what] != found]:
                raise BurstError(
                    f"process {rank} has other {' and '.join(differing)} than process 0; "
                    "give all processes the same files"
                )

    def run(self, until: int | None = None) -> dict[str, Any]:
        """Train from where the folder stands, then evaluate.

        With `until` up to the end of that epoch, with its state saved; then its line of metrics.
        """
        self._build()
        if self.writes and not (self.out / folder.CONFIG).exists():
            if self.recipe.needs_whitening:
                used = load_whitening(self.out / folder.WHITENING)
                self.config[folder.USED_WHITENING] = used.fingerprint
            save_json(self.out / folder.CONFIG, self.config)
        state = agreed(lambda: folder.load_checkpoint(self.out))
        done = self._load(state) if state else self.trainer.start()
        with self.signals, self._events() as events:
            while self.epoch < (until or self.recipe.total_epochs):
                self._train_epoch(done)
                self._tell(self._finish_epoch(done), events)
                done = self.trainer.start()
                if self.signals.agreed():
                    self._leave()
            if until is not None:
                return self.metrics[-1]
            try:
                return self._result()
            except _SignalledError:
                self._leave()

    def watched(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of an evaluation, up to a signal. (Several processes would have to agree.)"""
        for batch in batches:
            if self.signals.received and rank_and_size()[1] == 1:
                raise _SignalledError
            yield batch

    def _train_epoch(self, done: EpochState) -> None:
        steps, saved = self.epochs.steps, time.monotonic()

        def after_step(done: EpochState) -> None:
            nonlocal saved
            self.progress(self.epoch * steps + done.step, self.total_steps)
            due = time.monotonic() - saved > SAVE_EVERY
            told = self.signals.agreed(DUE if due else 0)  # clocks differ between processes
            if told:
                self.trainer.check(done.sums, done.step)
                self._save(done)
                saved = time.monotonic()
            if told and told != DUE:
                self._leave()

        batches = self.epochs.train(self.epoch, done.step)
        first = self.epoch * steps
        self.trainer.train_epoch(batches, first_step=first, done=done, after_step=after_step)

    def _check_finite(self, values: Mapping[str, Tensor]) -> None:
        """That the last step left something to go on with, whose loss nobody has seen."""
        for name, value in values.items():
            if not value.isfinite().all():
                raise NonFiniteLoss(
                    f"{name} is not finite after epoch {self.epoch + 1}; the last good state is "
                    "kept. Lower lr, warm up longer (warmup_epochs), or train in precision float32"
                )

    def _finish_epoch(self, done: EpochState) -> dict[str, Any]:
        """Evaluate, keep the tensors if they are to be kept, save; the line of metrics."""
        if agreed(lambda: done.seconds > LONG):
            self._save(done)
        try:
            found, trained = self._evaluated(done)
        except _SignalledError:
            self._save(done)
            self._leave()
        self.epoch += 1
        self.seconds += done.seconds
        line = {
            "epoch": self.epoch,
            "step": self.epoch * self.epochs.steps,
            **found,
            "lr": max(group["lr"] for group in self.trainer.optimizer.param_groups),
            "seconds": done.seconds,
        }
        self.metrics.append(line)
        # In this order a kill between two of them leaves nothing that the next start cannot mend.
        if self.writes and self._is_best(line):
            folder.save_tensors(self.out / folder.PROMPT, trained)
        self._save(None)
        if self.writes:
            folder.save_metrics(self.out, self.metrics)
        return line

    def _save(self, done: EpochState | None) -> None:
        """Keep the state after a whole epoch, or after some steps of one.

        Raises:
            NonFiniteLoss: a step left a tensor that is not finite; the state before stays.
        """
        within = None
        if done:
            self._check_finite(self.trainer.trained)
            sums = add_up(done.sums.clone()).cpu()
            within = {"step": done.step, "sums": sums, "seconds": done.seconds}
        content = {
            "epoch": self.epoch,
            "within": within,
            "metrics": self.metrics,
            "seconds": self.seconds,
            "trainer": self.trainer.state(),
        }
        if self.writes:
            folder.save_checkpoint(self.out, content)

    def _load(self, state: dict[str, Any]) -> EpochState:
        """Take over a saved state; how far its epoch was.

        Raises:
            CheckpointError: it is that of another training.
        """
        try:
            self.epoch, self.seconds = state["epoch"], state["seconds"]
            self.metrics, within = state["metrics"], state["within"]
            self.trainer.load(state["trainer"])
        except (LookupError, TypeError, ValueError, CheckpointError) as error:
            raise CheckpointError(
                f"{self.out / folder.CHECKPOINT} is of another training, or damaged: {error}; "
                "get the run's own back, or delete it, and the run is trained from its start"
            ) from error
        done = self.trainer.start()
        if within:
            done.step, done.seconds = within["step"], within["seconds"]
            if self.writes:  # the sums of all processes, so one takes them
                done.sums += within["sums"].to(self.device)
        if self.writes:
            folder.save_metrics(self.out, self.metrics)
        self.say(f"resumed after epoch {self.epoch}, step {done.step} of the next")
        others = len(state["trainer"]["random"]) != rank_and_size()[1]
        if others and self._random:
            self.say(f"{self._random} is drawn anew: the processes are not as many as before")
        return done

    @property
    def _random(self) -> str:
        """What a step draws that no seed of the data decides; empty where it draws nothing."""
        drawn = {"full": "stochastic depth", "lora": "LoRA's dropout"}
        if self.recipe.prompted and self.recipe.prompt_dropout:
            return "the prompts' dropout"
        return drawn.get(self.recipe.method, "")

    def _leave(self) -> NoReturn:
        raise Interrupted(self.signals.agreed() or signal.SIGTERM, resume_command())

    @contextmanager
    def _events(self) -> Iterator[SummaryWriter | None]:
        """Where TensorBoard's events go; what a resumed training repeats replaces the old."""
        if not self.writes:
            yield None
            return
        with self._told():
            writer = SummaryWriter(str(self.out), purge_step=self.epoch + 1)
        try:
            yield writer
        finally:
            with self._told():
                writer.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write to {self.out}: {error}") from error

    def _tell(self, line: Mapping[str, Any], events: SummaryWriter | None) -> None:
        """An epoch's line, for people and for TensorBoard."""
        if events is None:
            return
        with self._told():
            for name, value in _numbers(line):
                events.add_scalar(name, value, line["epoch"])
            events.flush()
        self.say(f"epoch {line['epoch']}/{self.recipe.total_epochs}  {self._spoken(line)}")


class _SignalledError(Exception):
    """A signal came during an evaluation."""


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What of a line can be drawn as a curve, by name; of a table in it as TABLE/NAME."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(value))
        elif value is not None and name != "epoch":
            yield name, value
