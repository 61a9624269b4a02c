"""Wires recipe, data, model and run folder: `train` for one seed, `train_seeds` for several."""

import dataclasses
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bpt import run as folder
from bpt.build import build_model, open_backbone, prompted_blocks
from bpt.engine import Progress, Scores, add_up, evaluate
from bpt.features import Batches, FeatureBatches, ImageBatches
from bpt.model import PromptedViT
from bpt.recipe import Recipe
from bpt.setup import (
    configuration,
    count_parameters,
    existing_result,
    make_trainer,
    open_benchmark,
    prompt_starts,
    training_split,
)
from bpt.signals import Signals, resume_command
from burst import forward
from burst.device import choose_device
from burst.distributed import (
    agreed,
    first_alone,
    is_first_process,
    process_group,
    rank_and_size,
)
from burst.errors import BurstError, Interrupted, NonFiniteLoss, OutputError
from burst.files import make_folder
from burst.provenance import provenance

T = TypeVar("T")
Say = Callable[[str], None]
SAVE_EVERY = 600.0  # seconds between states that are kept within an epoch
LABELS = {
    "standard": "epoch chosen on the validation split, test split read once",
    "authors": "trained on train and val, best epoch chosen on the test split: optimistic",
}


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: forward.Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Train what the recipe says and leave a run folder, see `bpt.run`.

    Under `torchrun` the batch is split over the processes. Resumed after a kill at any moment, it
    comes to the same numbers (bit for bit on a CPU in one process).

    Args:
        recipe: what and how.
        out: the run folder.
        device: "auto", "cpu", "cuda", ...
        resume: go on with the run in `out`, from its start if it never got to save a state. A
            run that is at its end gives its result again.
        progress: called as progress(steps done, steps in all).
        say: called with a line now and then.

    Returns:
        The content of result.json.

    Raises:
        RunExists: `out` holds a run, and `resume` is not given or the recipe is another.
        NonFiniteLoss: the training diverged; what was saved stays.
        Interrupted: by SIGINT or SIGTERM, after a step and with its state saved.
        BurstError: its subclasses for what `open_dataset`, `load_backbone`, `build_model` and
            `write_atomically` refuse. All processes raise the same, also if one alone has it.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with process_group(backend) as (rank, world):
        chosen = choose_device(device)  # in the group, so that all hear of a process without one
        if recipe.batch_size % world:
            raise BurstError(f"batch_size {recipe.batch_size} does not divide by {world} processes")
        if rank > 0:
            progress = say = None
        training = _Training(recipe, Path(out), chosen, progress, say)
        return training.open(resume=resume) or training.run()


def train_seeds(
    recipe: Recipe,
    seeds: Sequence[int],
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: forward.Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """`train` with each seed, into `out`/seed_N; and `summary.json`, which it returns.

    The summary holds the seeds, and for each accuracy the values, their mean and their sample
    standard deviation (null for one seed), in percent. With `resume`, seeds that are done are not
    trained again.

    Raises:
        BurstError: no seed, or one twice; else see `train`.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise BurstError(f"seeds {list(seeds)} must be at least one, and no two the same")
    results = []
    for seed in seeds:
        one = dataclasses.replace(recipe, seed=seed)
        where = Path(out) / f"seed_{seed}"
        tell = _prefixed(say, f"seed {seed}: ")
        results.append(train(one, where, device=device, resume=resume, progress=progress, say=tell))
    summary: dict[str, Any] = {"seeds": list(seeds), "label": results[0]["label"]}
    for name in ("val_accuracy", "test_accuracy"):
        values = [result[name] for result in results]
        if None not in values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            summary[name] = {"values": values, "mean": statistics.mean(values), "std": spread}
    if is_first_process():
        folder.save_json(Path(out) / "summary.json", summary)
    return summary


class _Training:
    """One training, from its first or its resumed step to result.json."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        device: torch.device,
        progress: forward.Progress | None,
        say: Say | None,
    ) -> None:
        self.recipe, self.out, self.device = recipe, out, device
        self.progress, self.say = progress or (lambda *_: None), say or (lambda _: None)
        self.writes = rank_and_size()[0] == 0
        self.metrics: list[dict[str, Any]] = []
        self.epoch, self.seconds = 0, 0.0
        self.signals = Signals()

    def open(self, *, resume: bool) -> dict[str, Any] | None:
        """Open data, backbone and folder; gives the result if the training is at its end."""
        recipe = self.recipe
        self.benchmark = first_alone(lambda: open_benchmark(recipe, say=self.say))
        self.backbone = open_backbone(recipe, self.device)
        prompted_blocks(recipe, self.backbone)  # what cannot be built shows before a folder is made
        if self.writes:
            make_folder(self.out)
        self.config = configuration(recipe, self.benchmark, self.backbone)
        return agreed(lambda: existing_result(self.out, recipe, self.config, resume=resume))

    def _build(self) -> None:
        recipe = self.recipe
        train = training_split(recipe, self.benchmark)
        digest = self.benchmark.digest
        starts = prompt_starts(recipe, self.backbone, train, digest, out=self.out, say=self.say)
        for line in recipe.provenance():
            self.say(line)
        self.model = build_model(recipe, self.backbone, len(self.benchmark.classes), **starts)
        self.config["parameters"] = count_parameters(self.model)
        if self.writes and not (self.out / folder.CONFIG).exists():
            folder.save_json(self.out / folder.CONFIG, self.config)
        images = ImageBatches(recipe, self.benchmark, self.backbone, train, say=self.say)
        self.batches: Batches = images
        forward: Callable[[Tensor], Tensor] = self.model
        if recipe.method == "linear":
            self.say("features of all images, computed once")
            self.batches = FeatureBatches(recipe, images, self.model)
            forward = self.model.head
        self.forward = torch.compile(forward) if recipe.compile else forward
        self.trainer = make_trainer(recipe, self.model, self.forward, self.batches.steps)

    def run(self) -> dict[str, Any]:
        """Train from where the folder stands, then read the test split."""
        self._build()
        state = agreed(lambda: folder.load_checkpoint(self.out))
        done = self._load(state) if state else Progress.start(self.device)
        with self.signals, self._events() as events:
            while self.epoch < self.recipe.total_epochs:
                self._train_epoch(done)
                line = self._finish_epoch(done)
                self._tell(line, events)
                done = Progress.start(self.device)
                if self.signals.agreed():
                    self._leave()
            try:
                return self._result()
            except _SignalledError:
                self._leave()

    def _train_epoch(self, done: Progress) -> None:
        steps, saved = self.batches.steps, time.monotonic()

        def after_step(done: Progress) -> None:
            nonlocal saved
            self.progress(self.epoch * steps + done.step, self.recipe.total_epochs * steps)
            signalled = self.signals.agreed()
            due = rank_and_size()[1] == 1 and time.monotonic() - saved > SAVE_EVERY
            if signalled or due:
                self.trainer.check(done.sums, done.step)
                self._save(done)
                saved = time.monotonic()
            if signalled:
                self._leave()

        batches = self.batches.train(self.epoch, done.step)
        first = self.epoch * steps
        self.trainer.train_epoch(batches, first_step=first, done=done, after_step=after_step)

    def _finish_epoch(self, done: Progress) -> dict[str, Any]:
        """Evaluate, keep the tensors if they are the best so far, save; the line of metrics."""
        world = rank_and_size()[1]
        authors = self.recipe.protocol == "authors"
        loss, correct, images, grad_norm = add_up(done.sums.clone()).tolist()
        try:
            with self._evaluated_tensors():
                scores = self._evaluate("test" if authors else "val")
                largest = self._largest_prompt()
                trained = self.model.trained_state()
        except _SignalledError:
            self._save(done)
            self._leave()
        if not all(bool(torch.isfinite(value).all()) for value in trained.values()):
            raise NonFiniteLoss(
                f"trained tensors are no longer finite after epoch {self.epoch + 1}; the last good "
                "state is kept. Lower --lr, warm up longer (--warmup-epochs), or use "
                "--precision float32"
            )
        self.epoch += 1
        self.seconds += done.seconds
        line = {
            "epoch": self.epoch,
            "step": self.epoch * self.batches.steps,
            "train_loss": loss / images,
            "train_accuracy": 100 * correct / images,
            "val_loss": None if authors else scores.loss,
            "val_accuracy": None if authors else scores.accuracy,
            "test_loss": scores.loss if authors else None,
            "test_accuracy": scores.accuracy if authors else None,
            "lr": max(group["lr"] for group in self.trainer.optimizer.param_groups),
            "prompt_grad_norm": grad_norm / done.step / world if self.trainer.prompts else None,
            "largest_prompt": largest,
            "images_per_second": images / done.seconds,
            "seconds": done.seconds,
        }
        self.metrics.append(line)
        # In this order a kill between two of them leaves nothing that the next start cannot mend.
        if self.writes and self._best() == line:
            folder.save_tensors(self.out / folder.PROMPT, trained)
        self._save(None)
        if self.writes:
            folder.save_metrics(self.out, self.metrics)
        return line

    def _best(self) -> dict[str, Any]:
        """The first of the epochs with the highest accuracy on the split that chooses."""
        name = "test_accuracy" if self.recipe.protocol == "authors" else "val_accuracy"
        return max(self.metrics, key=lambda line: float(line[name]))

    def _result(self) -> dict[str, Any]:
        """Read the test split with the best epoch's tensors, and write result.json."""
        best, last = self._best(), self.metrics[-1]
        authors = self.recipe.protocol == "authors"
        state = agreed(lambda: folder.open_run(self.out).trained_state())
        self.model.load_trained_state(state)
        test = self._evaluate("test")
        rates = [line["images_per_second"] for line in self.metrics]
        result = {
            "protocol": self.recipe.protocol,
            "label": LABELS[self.recipe.protocol],
            "best_epoch": best["epoch"],
            "epochs": self.recipe.epochs,
            "val_accuracy": best["val_accuracy"],
            "val_loss": best["val_loss"],
            "test_accuracy": test.accuracy,
            "test_loss": test.loss,
            "test_images": test.images,
            "parameters": self.config["parameters"],
            "seconds": self.seconds,
            "images_per_second": statistics.median(rates),
            "seed": self.recipe.seed,
            "ema": self.recipe.ema_decay is not None,
            **provenance(),
        }
        if authors:
            for name, line in {"last_epoch": last, "best_on_test": best}.items():
                result[name] = {key: line[key] for key in ("epoch", "test_accuracy")}
        if self.writes:
            folder.save_json(self.out / folder.RESULT, result)
        return result

    def _evaluate(self, split: str) -> Scores:
        self.model.eval()
        batches = self._watched(self.batches.evaluation(split))
        return evaluate(self.forward, batches, device=self.device, precision=self.recipe.precision)

    def _watched(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, up to a signal. (Several processes would have to agree at each.)"""
        for batch in batches:
            if self.signals.received and rank_and_size()[1] == 1:
                raise _SignalledError
            yield batch

    @contextmanager
    def _evaluated_tensors(self) -> Iterator[None]:
        """The moving average in place of the trained tensors, if there is one."""
        average = self.trainer.average
        if average is None:
            yield
            return
        trained = self.model.trained_state()
        self.model.load_trained_state(average.values)
        try:
            yield
        finally:
            self.model.load_trained_state(trained)

    def _largest_prompt(self) -> float | None:
        if not isinstance(self.model, PromptedViT) or not self.model.blocks:
            return None
        return max(float(values.abs().max()) for values in self.model.prompt_values().values())

    def _save(self, done: Progress | None) -> None:
        """Keep the state after a whole epoch, or after some steps of one."""
        within = None
        if done:
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

    def _load(self, state: dict[str, Any]) -> Progress:
        """Take over a saved state; how far its epoch was."""
        self.epoch, self.seconds, self.metrics = state["epoch"], state["seconds"], state["metrics"]
        self.trainer.load(state["trainer"])
        done, within = Progress.start(self.device), state["within"]
        if within:
            done.step, done.seconds = within["step"], within["seconds"]
            if self.writes:  # the sums of all processes, so one takes them
                done.sums += within["sums"].to(self.device)
        if self.writes:
            folder.save_metrics(self.out, self.metrics)
        self.say(f"resumed after epoch {self.epoch}, step {done.step} of the next")
        others = len(state["trainer"]["random"]) != rank_and_size()[1]
        if others and self.recipe.method == "full":
            self.say("stochastic depth is drawn anew: the processes are not as many as before")
        return done

    def _leave(self) -> NoReturn:
        raise Interrupted(self.signals.agreed() or signal.SIGTERM, resume_command())

    @contextmanager
    def _events(self) -> Iterator[SummaryWriter | None]:
        """Where TensorBoard's events go; what a resumed training repeats replaces the old."""
        if not self.writes:
            yield None
            return
        with SummaryWriter(str(self.out), purge_step=self.epoch + 1) as writer:
            yield writer

    def _tell(self, line: dict[str, Any], events: SummaryWriter | None) -> None:
        """An epoch's line, for people and for TensorBoard."""
        if events is None:
            return
        try:
            for name, value in line.items():
                if value is not None and name != "epoch":
                    events.add_scalar(name, value, line["epoch"])
            events.flush()
        except OSError as error:
            raise OutputError(f"cannot write to {self.out}: {error}") from error
        split = "test" if self.recipe.protocol == "authors" else "val"
        best = self._best()
        self.say(
            f"epoch {line['epoch']}/{self.recipe.epochs}  "
            f"loss {line['train_loss']:.3f}  train {line['train_accuracy']:.1f} %  "
            f"{split} {line[f'{split}_accuracy']:.1f} %  "
            f"(best {best[f'{split}_accuracy']:.1f} % in epoch {best['epoch']})  "
            f"{line['images_per_second']:.0f} images/s"
        )


class _SignalledError(Exception):
    """A signal came during an evaluation."""


def _prefixed(say: Say | None, prefix: str) -> Say | None:
    return None if say is None else lambda text: say(prefix + text)
