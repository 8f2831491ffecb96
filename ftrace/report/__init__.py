"""What a person looks at."""

from ftrace.report.ledger_plot import plot_ledger
from ftrace.report.worked_queries import WorkedQuery, render_worked_query

__all__ = ["WorkedQuery", "plot_ledger", "render_worked_query"]
