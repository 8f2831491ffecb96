"""Causal tracing: where in a model a fact lives."""

from ftrace.causal.averages import Averages, EffectGrid, Peak, StackAverages, average_effects
from ftrace.causal.positions import position_groups
from ftrace.causal.trace_files import find_trace, read_settings, read_trace, read_traces, trace_file, write_trace

__all__ = [
    "Averages",
    "EffectGrid",
    "Peak",
    "StackAverages",
    "average_effects",
    "find_trace",
    "position_groups",
    "read_settings",
    "read_trace",
    "read_traces",
    "trace_file",
    "write_trace",
]
