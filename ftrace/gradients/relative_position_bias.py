"""Tables of relative positions: their output has no batch axis, and is shared by all examples and many layers."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ftrace.gradients.rules import EMBEDDING

RELATIVE_POSITION_BIAS = replace(EMBEDDING, name="relative position bias", lookup="shared")


def is_relative_table(parent: nn.Module, table: nn.Module) -> bool:
    """Whether this is a table of relative positions, as in T5 and related models."""
    names = ("relative_attention_bias", "global_relative_attention_bias")
    return any(getattr(parent, name, None) is table for name in names)
