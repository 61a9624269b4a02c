"""Figures and tables of a survey, for a paper, a folder and a terminal."""

from reports.depth import depth_grid, depth_lines, draw_histogram
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
from reports.style import house_style, save_figure
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
    save_comparison,
)
from reports.whitening import (
    chosen_blocks,
    save_whitening_run,
    whitening_figure,
    whitening_record,
    whitening_table,
)

__all__ = [
    "STUDIES",
    "StudyCell",
    "check_table",
    "chosen_blocks",
    "compare",
    "comparison_figure",
    "comparison_table",
    "dataset_record",
    "datasets_table",
    "depth_grid",
    "depth_lines",
    "draw_curves",
    "draw_histogram",
    "evaluation_table",
    "house_style",
    "model_record",
    "models_table",
    "plain",
    "plan_table",
    "predictions_table",
    "published",
    "published_accuracies",
    "result_table",
    "run_record",
    "save_comparison",
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
    "whitening_figure",
    "whitening_record",
    "whitening_table",
]
