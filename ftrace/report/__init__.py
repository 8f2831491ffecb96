"""What a person looks at."""

from ftrace.report.learned_when_plot import plot_learned_when
from ftrace.report.ledger_plot import plot_ledger
from ftrace.report.study_plots import plot_bars, plot_curves
from ftrace.report.worked_queries import WorkedQuery, render_worked_query

__all__ = [
    "WorkedQuery",
    "plot_bars",
    "plot_curves",
    "plot_learned_when",
    "plot_ledger",
    "render_worked_query",
]
