"""Prompt tuning of Vision Transformers, with what `burst` finds out about their attention."""

from bpt.adaptation import AdapterViT, BitFitViT, PeftViT
from bpt.configuration import default_folder
from bpt.construction import build_model, restore_model
from bpt.cost import TrainingCost, dataset_sizes, training_cost
from bpt.dataset import (
    Benchmark,
    CheckedDataset,
    CocoDataset,
    CocoSplit,
    DatasetInfo,
    Split,
    check_dataset,
    data_root,
    dataset_info,
    download_dataset,
    how_to_get,
    known_datasets,
    locate,
    open_coco,
    open_dataset,
)
from bpt.dataset_images import dataset_images
from bpt.detection.backbone import FineTunedMap, PromptedMap, detection_backbone
from bpt.detection.construction import build_detector, restore_detector
from bpt.detection.cost import DetectionCost, detection_cost, known_detection_cost
from bpt.detection.detector import Detector, DetectorOptions
from bpt.detection.evaluate import DetectionScores, average_precision
from bpt.detection.export import export_detector, load_exported_detector
from bpt.detection.inference import (
    FoundObjects,
    evaluate_detector,
    open_images,
    predict_objects,
)
from bpt.detection.objects import Batch, Detections, Targets
from bpt.detection.published import detection_recipe_for
from bpt.detection.recipe import DetectionRecipe
from bpt.detection.run_folder import DetectionRun
from bpt.diagnosis import BlockDiagnosis, PromptDiagnosis, diagnose_prompts, prompt_diagnosis
from bpt.engine import Scores, evaluate
from bpt.errors import DownloadError, Interrupted, NonFiniteLoss, RunBusy, RunExists
from bpt.export import export_run, load_exported
from bpt.fine_tuning import FineTunedViT, layer_decay_groups
from bpt.gates import Gates
from bpt.hub import pull_prompt, push_run
from bpt.hub_folder import SharedRun
from bpt.hub_model import PromptClassifier, load_prompt
from bpt.inference import Evaluation, confusion_matrix, evaluate_run, predict
from bpt.loading import eval_batches, train_batches
from bpt.methods import METHODS
from bpt.model import PromptedViT
from bpt.optimisation import MovingAverage
from bpt.placement import parse_placement
from bpt.plan import TrainingPlan, plan_training
from bpt.prompt import (
    PROMPT_METHODS,
    BilinearPrompt,
    DiagonalPrompt,
    PlainPrompt,
    PromptModule,
    PromptOptions,
    WhitenedPrompt,
    build_prompt,
)
from bpt.prompt_matrices import prompt_matrices, prompt_whitening
from bpt.published import PublishedRecipe, published_rate, published_recipes, recipe_for
from bpt.recipe import Recipe
from bpt.recipe_file import load_recipe, make_recipe, save_recipe
from bpt.run_folder import Run, open_run
from bpt.search import (
    Difference,
    SearchCost,
    SearchOptions,
    paired_difference,
    search_base,
    search_costs,
    search_devices,
    search_folder,
    search_methods,
)
from bpt.study import run_study, study_search
from bpt.tokens import prompt_tokens
from bpt.train import train, train_seeds
from bpt.transforms import eval_transform, train_transform
from bpt.validate import validate_whitening
from bpt.validate_plan import (
    PlannedBenchmark,
    PlannedMethod,
    ValidationPlan,
    plan_validation,
)

__all__ = [
    "METHODS",
    "PROMPT_METHODS",
    "AdapterViT",
    "Batch",
    "Benchmark",
    "BilinearPrompt",
    "BitFitViT",
    "BlockDiagnosis",
    "CheckedDataset",
    "CocoDataset",
    "CocoSplit",
    "DatasetInfo",
    "DetectionCost",
    "DetectionRecipe",
    "DetectionRun",
    "DetectionScores",
    "Detections",
    "Detector",
    "DetectorOptions",
    "DiagonalPrompt",
    "Difference",
    "DownloadError",
    "Evaluation",
    "FineTunedMap",
    "FineTunedViT",
    "FoundObjects",
    "Gates",
    "Interrupted",
    "MovingAverage",
    "NonFiniteLoss",
    "PeftViT",
    "PlainPrompt",
    "PlannedBenchmark",
    "PlannedMethod",
    "PromptClassifier",
    "PromptDiagnosis",
    "PromptModule",
    "PromptOptions",
    "PromptedMap",
    "PromptedViT",
    "PublishedRecipe",
    "Recipe",
    "Run",
    "RunBusy",
    "RunExists",
    "Scores",
    "SearchCost",
    "SearchOptions",
    "SharedRun",
    "Split",
    "Targets",
    "TrainingCost",
    "TrainingPlan",
    "ValidationPlan",
    "WhitenedPrompt",
    "average_precision",
    "build_detector",
    "build_model",
    "build_prompt",
    "check_dataset",
    "confusion_matrix",
    "data_root",
    "dataset_images",
    "dataset_info",
    "dataset_sizes",
    "default_folder",
    "detection_backbone",
    "detection_cost",
    "detection_recipe_for",
    "diagnose_prompts",
    "download_dataset",
    "eval_batches",
    "eval_transform",
    "evaluate",
    "evaluate_detector",
    "evaluate_run",
    "export_detector",
    "export_run",
    "how_to_get",
    "known_datasets",
    "known_detection_cost",
    "layer_decay_groups",
    "load_exported",
    "load_exported_detector",
    "load_prompt",
    "load_recipe",
    "locate",
    "make_recipe",
    "open_coco",
    "open_dataset",
    "open_images",
    "open_run",
    "paired_difference",
    "parse_placement",
    "plan_training",
    "plan_validation",
    "predict",
    "predict_objects",
    "prompt_diagnosis",
    "prompt_matrices",
    "prompt_tokens",
    "prompt_whitening",
    "published_rate",
    "published_recipes",
    "pull_prompt",
    "push_run",
    "recipe_for",
    "restore_detector",
    "restore_model",
    "run_study",
    "save_recipe",
    "search_base",
    "search_costs",
    "search_devices",
    "search_folder",
    "search_methods",
    "study_search",
    "train",
    "train_batches",
    "train_seeds",
    "train_transform",
    "training_cost",
    "validate_whitening",
]
