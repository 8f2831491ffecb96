"""LightningModules that learn facts, and the snapshots of their training."""

from ftrace.models.fact_lm import FactLM
from ftrace.models.snapshots import (
    OptimizerState,
    find_snapshots,
    load_optimizer_states,
    load_snapshot,
    snapshot_fingerprint,
)

__all__ = [
    "FactLM",
    "OptimizerState",
    "find_snapshots",
    "load_optimizer_states",
    "load_snapshot",
    "snapshot_fingerprint",
]
