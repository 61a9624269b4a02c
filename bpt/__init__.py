"""Prompt tuning of Vision Transformers, with what `burst` finds out about their attention."""

from bpt.build import build_model, restore_model
from bpt.dataset import Benchmark, DatasetInfo, Split, known_datasets, open_dataset
from bpt.engine import Scores, evaluate
from bpt.export import export_run, load_exported
from bpt.fine_tuning import FineTunedViT, layer_decay_groups
from bpt.inference import Evaluation, evaluate_run, predict
from bpt.loading import eval_batches, eval_transform, train_batches, train_transform
from bpt.model import PromptedViT
from bpt.optimisation import MovingAverage
from bpt.placement import parse_placement
from bpt.prompt import (
    METHODS,
    BilinearPrompt,
    PlainPrompt,
    PromptModule,
    PromptOptions,
    WhitenedPrompt,
    build_prompt,
)
from bpt.recipe import Recipe
from bpt.run import Run, open_run
from bpt.setup import default_folder, is_first_process
from bpt.tokens import prompt_tokens
from bpt.train import train, train_seeds

__all__ = [
    "METHODS",
    "Benchmark",
    "BilinearPrompt",
    "DatasetInfo",
    "Evaluation",
    "FineTunedViT",
    "MovingAverage",
    "PlainPrompt",
    "PromptModule",
    "PromptOptions",
    "PromptedViT",
    "Recipe",
    "Run",
    "Scores",
    "Split",
    "WhitenedPrompt",
    "build_model",
    "build_prompt",
    "default_folder",
    "eval_batches",
    "eval_transform",
    "evaluate",
    "evaluate_run",
    "export_run",
    "is_first_process",
    "known_datasets",
    "layer_decay_groups",
    "load_exported",
    "open_dataset",
    "open_run",
    "parse_placement",
    "predict",
    "prompt_tokens",
    "restore_model",
    "train",
    "train_batches",
    "train_seeds",
    "train_transform",
]
