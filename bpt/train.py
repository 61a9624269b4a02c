"""Wires recipe, data, model and run folder: `train` for one seed, `train_seeds` for several."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bpt import run_folder as folder
from bpt.batches import Batches, batches_for, check_share, fitted
from bpt.configuration import (
    backbone_for,
    configuration,
    open_benchmark,
    training_split,
)
from bpt.construction import (
    Model,
    build_model,
    count_parameters,
    prompted_blocks,
)
from bpt.dataset import fold_of
from bpt.detection.recipe import DetectionRecipe
from bpt.detection.train import DetectionSession
from bpt.diagnosis import diagnose_prompts, effective_rank, spread_images
from bpt.engine import EpochState, Labelled, Scores, add_up, classify, make_trainer
from bpt.errors import RunBusy
from bpt.image_batches import unseen_images
from bpt.model import NORM, PromptedViT
from bpt.prompt_starts import prompt_starts
from bpt.recipe import Recipe
from bpt.session import Session
from burst.distributed import agreed, first_alone, is_first_process, process_group, rank_and_size
from burst.errors import BurstError
from burst.files import make_folder, save_json
from burst.loading.common import required
from burst.lock import if_alone
from burst.progress import Progress, Say
from burst.provenance import provenance

LABELS = {
    "standard": "epoch chosen on the validation split, test split read once",
    "last": "trained on train and val, last epoch, test split read once",
    "authors": "trained on train and val, best epoch chosen on the test split: optimistic",
}


def train(
    recipe: Recipe | DetectionRecipe,
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    until: int | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Train what the recipe says and leave a run folder, see `bpt.run_folder`.

    Under `torchrun` the batch is split over the processes. Resumed after a kill at any moment, it
    comes to the same numbers (bit for bit on a CPU in one process).

    Args:
        recipe: what and how.
        out: the run folder.
        device: "auto", "cpu", "cuda", ...
        resume: go on with the run in `out`, from its start if it never got to save a state. A
            run that is at its end gives its result again.
        until: stop at the end of this epoch, as if interrupted: learning rates are those of the
            whole training, the test split is not read, and the training can be gone on with.
        progress: called as progress(steps done, steps in all).
        say: called with a line now and then.

    Returns:
        The content of result.json; of a training that stopped before, the last epoch's line of
        metrics.jsonl.

    Raises:
        RunExists: `out` holds a run, and `resume` is not given or the recipe is another.
        RunBusy: another process trains in `out` now.
        NonFiniteLoss: the training diverged; what was saved stays.
        Interrupted: by SIGINT or SIGTERM, after a step and with its state saved.
        BurstError: its subclasses for what `open_dataset`, `load_backbone`, `build_model` and
            `write_atomically` refuse; `until` is no epoch of the training. All processes raise
            the same, also if one alone has it.
    """
    if until is not None and not 1 <= until <= recipe.total_epochs:
        raise BurstError(f"until is {until}; it must lie in 1..{recipe.total_epochs}, the epochs")
    options = {"device": device, "resume": resume, "until": until, "progress": progress, "say": say}
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with process_group(backend), _alone_in(Path(out)):
        if isinstance(recipe, DetectionRecipe):
            return DetectionSession.train(recipe, out, **options)  # type: ignore[arg-type]
        return ClassificationSession.train(recipe, out, **options)  # type: ignore[arg-type]


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Make a run folder, which no other process trains in meanwhile.

    If it stays empty, it goes, with the folders above it that were made for it.
    """
    with ExitStack() as held:

        def hold() -> None:
            made = [one for one in (out, *out.parents) if not one.exists()]
            held.callback(_remove_while_empty, made)
            make_folder(out)
            if not held.enter_context(if_alone(out / folder.CONFIG)):
                raise RunBusy(
                    f"another process trains in {out} now; wait for its end, or choose another "
                    "folder (--out)"
                )

        agreed(hold)
        yield


def _remove_while_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):
        for one in folders:
            one.rmdir()


def train_seeds(
    recipe: Recipe | DetectionRecipe,
    seeds: Sequence[int],
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """`train` with each seed, into `out`/seed_N; and `summary.json`, which it returns.

    The summary holds the seeds, and for each accuracy, or average precision of a detector, the
    values, their mean and their sample standard deviation (null for one seed), in percent. With
    `resume`, seeds that are done are not trained again. Other arguments as of `train`.

    Raises:
        BurstError: no seed, or one twice; else see `train`.
    """
    check_seeds(seeds)
    options = {"device": device, "resume": resume, "progress": progress}
    results = [train_seed(recipe, seed, out, say=say, **options) for seed in seeds]
    return seeds_summary(seeds, results, out)


def check_seeds(seeds: Sequence[int]) -> None:
    """
    Raises:
        BurstError: no seed, or one twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise BurstError(f"seeds {list(seeds)} must be at least one, and no two the same")


def train_seed(
    recipe: Recipe | DetectionRecipe,
    seed: int,
    out: str | Path,
    *,
    say: Say | None = None,
    **options: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """One of `train_seeds`, without the summary; other options as of `train`."""
    one = dataclasses.replace(recipe, seed=seed)
    tell = None if say is None else lambda text: say(f"seed {seed}: {text}")
    return train(one, Path(out) / f"seed_{seed}", say=tell, **options)


def seeds_summary(
    seeds: Sequence[int], results: Sequence[Mapping[str, Any]], out: str | Path
) -> dict[str, Any]:
    """What `train_seeds` returns, of what `train` gave for each seed; and `out`/summary.json.

    Raises:
        OutputError: it cannot be written.
    """
    summary: dict[str, Any] = {"seeds": list(seeds), "label": results[0]["label"]}
    numbers = [_scores_of(result) for result in results]
    for name in numbers[0]:
        values = [number for one in numbers if (number := one[name]) is not None]
        if len(values) == len(seeds):
            spread = statistics.stdev(values) if len(values) > 1 else None
            summary[name] = {"values": values, "mean": statistics.mean(values), "std": spread}
    if is_first_process():
        save_json(Path(out) / "summary.json", summary)
    return summary


def _scores_of(result: Mapping[str, Any]) -> Mapping[str, float | None]:
    """What seeds are compared by."""
    if "scores" in result:
        scores: Mapping[str, float | None] = result["scores"]
        return scores
    return {name: result[name] for name in ("val_accuracy", "test_accuracy")}


class ClassificationSession(Session[Recipe, Labelled]):
    """Of prompts and a linear head."""

    model: Model
    epochs: Batches

    def _open(self) -> None:
        recipe = self.recipe
        for library in recipe.libraries:  # what cannot be built shows before anything is read
            required(library, library)
        if self.opened:
            self.benchmark = fold_of(self.opened, recipe.fold)
        else:
            self.benchmark = first_alone(lambda: open_benchmark(recipe, say=self.say))
        self.train_split = training_split(recipe, self.benchmark)
        recipe = self.recipe = fitted(recipe, len(self.train_split), begun=self.begun)
        self.backbone = backbone_for(recipe, self.benchmark, self.device)
        check_share(recipe, rank_and_size()[1])
        prompted_blocks(recipe, self.backbone)  # what cannot be built shows before a folder is made
        self.config = configuration(recipe, self.benchmark, self.backbone)

    def _build(self) -> None:
        recipe, train = self.recipe, self.train_split
        digest = self.benchmark.digest
        starts = prompt_starts(recipe, self.backbone, train, digest, out=self.out, say=self.say)
        for line in (*self.backbone.notes, *recipe.provenance()):
            self.say(line)
        self.model = build_model(recipe, self.backbone, len(self.benchmark.classes), **starts)
        self.config["parameters"] = count_parameters(self.model)
        self.epochs = batches_for(
            recipe, self.benchmark, self.backbone, train, self.model, say=self.say
        )
        if unseen := unseen_images(recipe, len(train)):
            self.say(unseen)
        # A probe's batches are features; prompts take images, or tokens in front of the first.
        linear = recipe.method == "linear"
        forward: Callable[[Tensor], Tensor] = self.model.head if linear else self.model
        self.forward = torch.compile(forward) if recipe.compile else forward
        self.trainer = make_trainer(recipe, self.model, self.forward, self.epochs.steps)

    def _evaluated(self, done: EpochState) -> tuple[dict[str, Any], dict[str, Tensor]]:
        split = self.recipe.chooses
        loss, correct, images, grad_norm = add_up(done.sums.clone()).tolist()
        self._agree_on_statistics()
        with self._evaluated_tensors():
            scores = self._evaluate(split) if split else None
            trained = self.model.trained_state()
            losses = {f"the loss on {split}": torch.tensor(scores.loss)} if scores else {}
            self._check_finite(trained | losses)
            prompts = self._prompts()
        names = [f"{one}_{name}" for one in ("val", "test") for name in ("loss", "accuracy")]
        found: dict[str, float | None] = dict.fromkeys(names)
        if scores:
            found |= {f"{split}_loss": scores.loss, f"{split}_accuracy": scores.accuracy}
        return {
            "train_loss": loss / images,
            "train_accuracy": 100 * correct / images,
            **found,
            "prompt_grad_norm": grad_norm / done.step if self.trainer.prompts else None,
            **prompts,
            "images_per_second": images / done.seconds,
        }, trained

    def _is_best(self, line: Mapping[str, Any]) -> bool:
        return self._best() == line

    def _best(self) -> dict[str, Any]:
        """The first of the epochs with the highest accuracy on the split that chooses, if any."""
        split = self.recipe.chooses
        if split is None:
            return self.metrics[-1]
        return max(self.metrics, key=lambda line: float(line[f"{split}_accuracy"]))

    def _result(self) -> dict[str, Any]:
        """Read the test split with the best epoch's tensors, and write result.json."""
        best, last = self._best(), self.metrics[-1]
        authors = self.recipe.protocol == "authors"
        state = agreed(lambda: folder.open_run(self.out).trained_state())
        self.model.load_trained_state(state)
        test, predicted = self._classify("test")
        rates = [line["images_per_second"] for line in self.metrics]
        result = {
            "protocol": self.recipe.protocol,
            "label": LABELS[self.recipe.protocol],
            "best_epoch": best["epoch"],
            "epochs": self.recipe.epochs,
            "val_accuracy": best["val_accuracy"],
            "val_loss": best["val_loss"],
            "test_accuracy": test.accuracy,
            "test_loss": folder.finite(test.loss),
            "test_images": test.images,
            "parameters": self.config["parameters"],
            "seconds": self.seconds,
            "images_per_second": statistics.median(rates),
            "seed": self.recipe.seed,
            "ema": self.recipe.ema_decay is not None,
            "prompt_diagnosis": self._diagnosis(),
            **provenance(*self.recipe.libraries),
        }
        if authors:
            for name, line in {"last_epoch": last, "best_on_test": best}.items():
                result[name] = {key: line[key] for key in ("epoch", "test_accuracy")}
        if self.writes:
            folder.save_tensors(self.out / folder.PREDICTIONS, predicted)
            save_json(self.out / folder.RESULT, result)
        return result

    def _evaluate(self, split: str) -> Scores:
        return self._classify(split)[0]

    def _classify(self, split: str) -> tuple[Scores, dict[str, Tensor]]:
        """Scores, and of each image the class that was named and its own; (n,) int64."""
        self.model.eval()
        batches = self.watched(self.epochs.evaluation(split))
        precision = self.recipe.precision
        scores, answers = classify(self.forward, batches, device=self.device, precision=precision)
        return scores, {"predicted": answers[:, 0], "labels": answers[:, 1]}

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

    def _agree_on_statistics(self) -> None:
        """What the norm in the head has counted, averaged over the processes, in place."""
        world, average = rank_and_size()[1], self.trainer.average
        if world == 1 or self.recipe.head_norm == "none":
            return
        for held in (self.trainer.trained, average.values if average else {}):
            for name, value in held.items():
                if name.startswith(NORM):
                    value.copy_(add_up(value) / world)

    def _prompts(self) -> dict[str, float | None]:
        """The largest value of the prompts, and the least effective rank of one."""
        if not isinstance(self.model, PromptedViT) or not self.model.blocks:
            return {"largest_prompt": None, "prompt_effective_rank": None}
        values = self.model.prompt_values().values()
        return {
            "largest_prompt": max(float(one.abs().max()) for one in values),
            "prompt_effective_rank": min(effective_rank(one) for one in values),
        }

    def _diagnosis(self) -> dict[str, Any] | None:
        """Of the prompts that are kept, on images of the split that chose them, if one did."""
        model = self.model
        if not isinstance(model, PromptedViT) or not model.blocks:
            return None
        split = getattr(self.benchmark, self.recipe.chooses or "train")
        images = spread_images(split, self.backbone)
        return agreed(lambda: diagnose_prompts(model, images).to_dict())

    def _spoken(self, line: Mapping[str, Any]) -> str:
        split, best = self.recipe.chooses, self._best()
        chosen = ""
        if split is not None:
            name = f"{split}_accuracy"
            best_so_far = f"best {best[name]:.1f} % in epoch {best['epoch']}"
            chosen = f"{split} {line[name]:.1f} %  ({best_so_far})  "
        return (
            f"loss {line['train_loss']:.3f}  train {line['train_accuracy']:.1f} %  {chosen}"
            f"{line['images_per_second']:.0f} images/s"
        )
