"""LightningModules that learn facts, and the snapshots of their training."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.files.snapshot_files import find_snapshots
    from ftrace.models.fact_lm import FactLM
    from ftrace.models.outputs import Output
    from ftrace.models.rounding import tolerance_of
    from ftrace.models.snapshots import OptimizerState, load_optimizer_states, load_snapshot
    from ftrace.models.stacked import StackedFactLM
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "FactLM",
    "OptimizerState",
    "Output",
    "StackedFactLM",
    "find_snapshots",
    "load_optimizer_states",
    "load_snapshot",
    "tolerance_of",
]
