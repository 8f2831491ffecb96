"""LightningModules that learn facts, and the snapshots of their training."""

from ftrace.models.fact_lm import FactLM, Output
from ftrace.models.rounding import tolerance_of
from ftrace.models.snapshots import OptimizerState, find_snapshots, load_optimizer_states, load_snapshot
from ftrace.models.stacked import StackedFactLM

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
