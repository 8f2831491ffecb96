"""Pictures and printed tables."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.report.causal_plots import plot_average, plot_lines, plot_prompt
    from ftrace.report.causal_tables import render_averages, write_averages_csv, write_effects_csv
    from ftrace.report.learned_when_plot import plot_learned_when
    from ftrace.report.ledger_plot import plot_ledger
    from ftrace.report.study_plots import plot_bars, plot_curves
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "plot_average",
    "plot_bars",
    "plot_curves",
    "plot_learned_when",
    "plot_ledger",
    "plot_lines",
    "plot_prompt",
    "render_averages",
    "write_averages_csv",
    "write_effects_csv",
]
