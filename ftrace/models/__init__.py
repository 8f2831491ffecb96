"""LightningModules that learn facts, and the snapshots of their training."""

from ftrace.models.fact_lm import FactLM, Output
from ftrace.models.snapshots import find_snapshots, load_snapshot

__all__ = ["FactLM", "Output", "find_snapshots", "load_snapshot"]
