"""LightningModules that learn facts."""

from ftrace.models.fact_lm import FactLM

__all__ = ["FactLM"]
