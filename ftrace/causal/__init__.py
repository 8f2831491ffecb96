"""Causal tracing: where in a model a fact lives."""

from ftrace.causal.corruption import Corruption, NoiseSettings
from ftrace.causal.layouts import PRESETS, ModelLayout
from ftrace.causal.mediators import MEDIATORS, Mediator
from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace, Stack, StackTrace
from ftrace.causal.tracer import CausalTracer, TraceSettings

__all__ = [
    "MEDIATORS",
    "OUTCOMES",
    "PRESETS",
    "CausalTracer",
    "Corruption",
    "Mediator",
    "ModelLayout",
    "NoiseSettings",
    "Outcome",
    "PromptTrace",
    "Stack",
    "StackTrace",
    "TraceSettings",
]
