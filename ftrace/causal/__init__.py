"""Causal tracing: where in a model a fact lives."""
