"""Files of retrieved proponents: their format, their metrics, and tables that compare them."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.evaluation.results.files import Passages, RetrievalResult, read_results, write_results
    from ftrace.evaluation.results.metrics import ResultsEvaluation, evaluate_results, result_metrics
    from ftrace.evaluation.results.tables import render_result_groups, render_results, write_result_tables
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "Passages",
    "ResultsEvaluation",
    "RetrievalResult",
    "evaluate_results",
    "read_results",
    "render_result_groups",
    "render_results",
    "result_metrics",
    "write_result_tables",
    "write_results",
]
