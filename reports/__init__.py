"""Figures and tables of a survey, for a paper, a folder and a terminal."""

from reports.backbones import head_maps, law_lines, overlay_grid
from reports.bpt_report import beside_published, labels, prompt_values, save_bpt_report
from reports.burst_report import BackboneReport, measured_whitening, save_burst_report
from reports.depth import depth_grid, depth_lines, draw_histogram
from reports.prompts import (
    confusion_figure,
    cosine_figure,
    cosine_matrix,
    trace_figure,
    values_figure,
)
from reports.published import STUDIES, published, published_accuracies
from reports.study import (
    StudyCell,
    plan_table,
    save_study,
    study_cells,
    study_frame,
    study_recipes,
    study_table,
)
from reports.style import figure_style, house_style, save_figure
from reports.survey_files import run_record, save_survey
from reports.terminal import model_record, models_table, survey_notes, survey_table
from reports.training import (
    check_table,
    compare,
    comparison_figure,
    comparison_table,
    dataset_record,
    datasets_table,
    draw_curves,
    evaluation_table,
    plain,
    predictions_table,
    result_table,
)
from reports.whitening import (
    chosen_blocks,
    save_whitening_run,
    whitening_figure,
    whitening_record,
    whitening_table,
)
from reports.words import findings

__all__ = [
    "STUDIES",
    "BackboneReport",
    "StudyCell",
    "beside_published",
    "check_table",
    "chosen_blocks",
    "compare",
    "comparison_figure",
    "comparison_table",
    "confusion_figure",
    "cosine_figure",
    "cosine_matrix",
    "dataset_record",
    "datasets_table",
    "depth_grid",
    "depth_lines",
    "draw_curves",
    "draw_histogram",
    "evaluation_table",
    "figure_style",
    "findings",
    "head_maps",
    "house_style",
    "labels",
    "law_lines",
    "measured_whitening",
    "model_record",
    "models_table",
    "overlay_grid",
    "plain",
    "plan_table",
    "predictions_table",
    "prompt_values",
    "published",
    "published_accuracies",
    "result_table",
    "run_record",
    "save_bpt_report",
    "save_burst_report",
    "save_figure",
    "save_study",
    "save_survey",
    "save_whitening_run",
    "study_cells",
    "study_frame",
    "study_recipes",
    "study_table",
    "survey_notes",
    "survey_table",
    "trace_figure",
    "values_figure",
    "whitening_figure",
    "whitening_record",
    "whitening_table",
]
