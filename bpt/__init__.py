"""Prompt tuning of Vision Transformers, with what `burst` finds out about their attention."""

from bpt.build import build_model, restore_model
from bpt.cost import TrainingCost, dataset_sizes, training_cost
from bpt.dataset import (
    Benchmark,
    CheckedDataset,
    DatasetInfo,
    Split,
    check_dataset,
    dataset_info,
    download_dataset,
    how_to_get,
    known_datasets,
    locate,
    open_dataset,
)
from bpt.engine import Scores, evaluate
from bpt.export import export_run, load_exported
from bpt.fine_tuning import FineTunedViT, layer_decay_groups
from bpt.inference import Evaluation, confusion_matrix, evaluate_run, predict
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
from bpt.published import PublishedRecipe, published_recipes, recipe_for
from bpt.recipe import Recipe
from bpt.run import Run, open_run
from bpt.setup import default_folder
from bpt.study import run_study
from bpt.tokens import prompt_tokens
from bpt.train import train, train_seeds

__all__ = [
    "METHODS",
    "Benchmark",
    "BilinearPrompt",
    "CheckedDataset",
    "DatasetInfo",
    "Evaluation",
    "FineTunedViT",
    "MovingAverage",
    "PlainPrompt",
    "PromptModule",
    "PromptOptions",
    "PromptedViT",
    "PublishedRecipe",
    "Recipe",
    "Run",
    "Scores",
    "Split",
    "TrainingCost",
    "WhitenedPrompt",
    "build_model",
    "build_prompt",
    "check_dataset",
    "confusion_matrix",
    "dataset_info",
    "dataset_sizes",
    "default_folder",
    "download_dataset",
    "eval_batches",
    "eval_transform",
    "evaluate",
    "evaluate_run",
    "export_run",
    "how_to_get",
    "known_datasets",
    "layer_decay_groups",
    "load_exported",
    "locate",
    "open_dataset",
    "open_run",
    "parse_placement",
    "predict",
    "prompt_tokens",
    "published_recipes",
    "recipe_for",
    "restore_model",
    "run_study",
    "train",
    "train_batches",
    "train_seeds",
    "train_transform",
    "training_cost",
]
