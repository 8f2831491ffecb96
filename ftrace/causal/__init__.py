"""Causal tracing: where in a model a fact lives."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.causal.averages import Averages, EffectGrid, Peak, StackAverages, average_effects
    from ftrace.causal.corruption import Corruption
    from ftrace.causal.layouts import PRESETS
    from ftrace.causal.mediators import MEDIATORS, Mediator
    from ftrace.causal.positions import position_groups
    from ftrace.causal.prediction import TracedPrompts, trace_prompts
    from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace, Stack, StackTrace
    from ftrace.causal.settings import CausalSettings, ModelLayout, NoiseSettings
    from ftrace.causal.trace_files import read_settings, read_trace, trace_file, write_trace
    from ftrace.causal.trace_task import TraceTask
    from ftrace.causal.tracer import CausalTracer
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "MEDIATORS",
    "OUTCOMES",
    "PRESETS",
    "Averages",
    "CausalSettings",
    "CausalTracer",
    "Corruption",
    "EffectGrid",
    "Mediator",
    "ModelLayout",
    "NoiseSettings",
    "Outcome",
    "Peak",
    "PromptTrace",
    "Stack",
    "StackAverages",
    "StackTrace",
    "TraceTask",
    "TracedPrompts",
    "average_effects",
    "position_groups",
    "read_settings",
    "read_trace",
    "trace_file",
    "trace_prompts",
    "write_trace",
]
