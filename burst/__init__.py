"""How the attention weights of a transformer are distributed: measure it.

A = W_q W_k^T is the bilinear form through which tokens meet in attention, X what the attention
reads, A X^T the response of each token to every unit prompt. `survey` measures all three for every
block of a model in one pass over images or texts; the pieces it is made of are here too.
"""

from burst.adapters import (
    AttentionLayout,
    OmittedTermWarning,
    SkippedBlock,
    adapter,
    describe_blocks,
    find_blocks,
    num_prefix_tokens,
    prefix_tokens,
    refuse,
)
from burst.axis import FloatAxis, RegularAxis
from burst.backbone import Backbone, load_backbone
from burst.backbone_spec import BackboneSpec, find_backbone, known_backbones
from burst.checkpoint import LoadReport, load_checkpoint, read_checkpoint
from burst.collect import collect_moments, collect_split, split_images
from burst.decorrelation import Decorrelation, decorrelate
from burst.device import choose_device
from burst.distributed import is_first_process, process_group
from burst.distribution import (
    Gaussian,
    GeneralisedGaussian,
    Laplace,
    fit_gaussian,
    fit_generalised_gaussian,
    fit_laplace,
    ks_distance,
)
from burst.errors import (
    BackendError,
    BackendWarning,
    BurstError,
    CheckpointError,
    EmptyResult,
    HookNeverFired,
    ImageError,
    OutputError,
    ShapeError,
    TextError,
    UnknownName,
    UnsupportedModel,
)
from burst.extremes import Extremes, extremes
from burst.extremes_tables import carriers
from burst.files import make_folder, write_atomically
from burst.histogram import Histogram, NonFinite
from burst.images import ImageStream, open_images
from burst.interaction import (
    head_response_histogram,
    interaction,
    response_histogram,
    response_matrix,
)
from burst.jackknife import jackknife
from burst.kernels import HistogramAccumulator, histogram, kernel_trials, matmul_histogram
from burst.loading.listing import library_models
from burst.moments import Moments
from burst.nulls import permuted_columns, random_weights
from burst.power_law import PowerLaw, fit_power_law
from burst.projection import Projection, projection
from burst.provenance import provenance, version
from burst.score_tiles import Scores
from burst.scores import capture_scores
from burst.second_moments import SecondMoments, TokenMoments
from burst.softmax import SOFTMAX_COLUMNS, Prefix, SoftmaxAccumulator, WeightStatistics
from burst.spectrum import (
    SPECTRAL_STATISTICS,
    Spectrum,
    describe_spectrum,
    singular_values,
    spectrum,
    symmetric_share,
)
from burst.statistics import STATISTICS, abs_quantile, describe, gini, hill, top_energy
from burst.survey import QUANTITIES, Survey, SurveyOptions, images_for, survey
from burst.text import TextStream, Tokenizer, open_text, text_for
from burst.token_map import BlockMap, PhotoMaps, TokenMap, map_photos, token_energy
from burst.tokens import capture
from burst.whitened import WhitenedEntries, whitened_histogram, whitened_histograms
from burst.whitening import (
    BlockDiagnostics,
    RankWarning,
    Whitening,
    whiten,
    whiten_moments,
)
from burst.whitening_file import check_whitening_path, load_whitening, save_whitening
from burst.whitening_options import WhiteningOptions

__all__ = [
    "QUANTITIES",
    "SOFTMAX_COLUMNS",
    "SPECTRAL_STATISTICS",
    "STATISTICS",
    "AttentionLayout",
    "Backbone",
    "BackboneSpec",
    "BackendError",
    "BackendWarning",
    "BlockDiagnostics",
    "BlockMap",
    "BurstError",
    "CheckpointError",
    "Decorrelation",
    "EmptyResult",
    "Extremes",
    "FloatAxis",
    "Gaussian",
    "GeneralisedGaussian",
    "Histogram",
    "HistogramAccumulator",
    "HookNeverFired",
    "ImageError",
    "ImageStream",
    "Laplace",
    "LoadReport",
    "Moments",
    "NonFinite",
    "OmittedTermWarning",
    "OutputError",
    "PhotoMaps",
    "PowerLaw",
    "Prefix",
    "Projection",
    "RankWarning",
    "RegularAxis",
    "Scores",
    "SecondMoments",
    "ShapeError",
    "SkippedBlock",
    "SoftmaxAccumulator",
    "Spectrum",
    "Survey",
    "SurveyOptions",
    "TextError",
    "TextStream",
    "TokenMap",
    "TokenMoments",
    "Tokenizer",
    "UnknownName",
    "UnsupportedModel",
    "WeightStatistics",
    "WhitenedEntries",
    "Whitening",
    "WhiteningOptions",
    "abs_quantile",
    "adapter",
    "capture",
    "capture_scores",
    "carriers",
    "check_whitening_path",
    "choose_device",
    "collect_moments",
    "collect_split",
    "decorrelate",
    "describe",
    "describe_blocks",
    "describe_spectrum",
    "extremes",
    "find_backbone",
    "find_blocks",
    "fit_gaussian",
    "fit_generalised_gaussian",
    "fit_laplace",
    "fit_power_law",
    "gini",
    "head_response_histogram",
    "hill",
    "histogram",
    "images_for",
    "interaction",
    "is_first_process",
    "jackknife",
    "kernel_trials",
    "known_backbones",
    "ks_distance",
    "library_models",
    "load_backbone",
    "load_checkpoint",
    "load_whitening",
    "make_folder",
    "map_photos",
    "matmul_histogram",
    "num_prefix_tokens",
    "open_images",
    "open_text",
    "permuted_columns",
    "prefix_tokens",
    "process_group",
    "projection",
    "provenance",
    "random_weights",
    "read_checkpoint",
    "refuse",
    "response_histogram",
    "response_matrix",
    "save_whitening",
    "singular_values",
    "spectrum",
    "split_images",
    "survey",
    "symmetric_share",
    "text_for",
    "token_energy",
    "top_energy",
    "version",
    "whiten",
    "whiten_moments",
    "whitened_histogram",
    "whitened_histograms",
    "write_atomically",
]
