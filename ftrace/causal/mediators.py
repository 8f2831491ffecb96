"""The mediators: what is restored at one layer and one token."""

from __future__ import annotations

from typing import Literal

Mediator = Literal[
    "hidden", "attention_severed", "mlp_severed", "cross_attention_severed", "mlp", "attention", "cross_attention"
]
"""
"hidden": the layer's output. "..._severed": the same, while the module's outputs at that token keep their corrupted values
in all layers above. "mlp", "attention", "cross_attention": the module's outputs in a window of layers around this one.
"""
