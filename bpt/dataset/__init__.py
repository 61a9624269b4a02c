"""A name -> training, validation and test images with their classes; one file a dataset.

digits         scikit-learn's hand-written digits, which come with it
folder:PATH    one's own images: folders of classes, or of splits, or a CSV of labels
cub, nabirds, flowers, dogs, cars, imagenet
               the paper's benchmarks, from the files that their makers publish
vtab:TASK      VTAB-1k, 19 tasks of 1,000 images, such as vtab:cifar

For detection `open_coco` opens "coco", and "coco:PATH" for one's own set in its format.
"""

from bpt.dataset.benchmark import SPLITS, Benchmark, DatasetInfo, how_to_get
from bpt.dataset.check import CheckedDataset, check_dataset
from bpt.dataset.coco import Categories, CocoDataset, CocoSplit, open_coco
from bpt.dataset.coco_annotations import Annotations, CocoObjects, coco_masks, encode_mask
from bpt.dataset.download import RemoteFile
from bpt.dataset.folds import all_training_images, fold_of, parse_fold
from bpt.dataset.place import data_root
from bpt.dataset.registry import (
    dataset_info,
    download_dataset,
    file_name,
    known_datasets,
    locate,
    open_dataset,
    without_place,
)
from bpt.dataset.split import FileOpener, Split, class_fraction, hold_out

__all__ = [
    "SPLITS",
    "Annotations",
    "Benchmark",
    "Categories",
    "CheckedDataset",
    "CocoDataset",
    "CocoObjects",
    "CocoSplit",
    "DatasetInfo",
    "FileOpener",
    "RemoteFile",
    "Split",
    "all_training_images",
    "check_dataset",
    "class_fraction",
    "coco_masks",
    "data_root",
    "dataset_info",
    "download_dataset",
    "encode_mask",
    "file_name",
    "fold_of",
    "hold_out",
    "how_to_get",
    "known_datasets",
    "locate",
    "open_coco",
    "open_dataset",
    "parse_fold",
    "without_place",
]
