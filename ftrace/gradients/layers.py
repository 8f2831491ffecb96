"""The table of layers and their rules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ftrace.gradients import norms
from ftrace.gradients.convolutions import find_convolution_rule
from ftrace.gradients.names import full_name
from ftrace.gradients.rules import CONV1D, EMBEDDING, LINEAR, Rule

# By the forward that runs, so that a subclass which overrides it is not taken for its parent.
_BY_FORWARD: dict[Callable[..., Tensor], Rule] = {
    nn.Linear.forward: LINEAR,
    nn.Embedding.forward: EMBEDDING,
    **norms.BY_FORWARD,
}
# Hugging Face's own layers, by full name: this package imports nothing but torch.
_BY_CLASS: dict[str, Rule] = {"transformers.pytorch_utils.Conv1D": CONV1D, **norms.BY_CLASS}


def find_rule(module: nn.Module) -> Rule | None:
    """Find the rule for a layer; None where there is none."""
    if "forward" in module.__dict__:  # somebody has replaced it
        return None
    return _BY_FORWARD.get(type(module).forward) or _BY_CLASS.get(full_name(module)) or find_convolution_rule(module)
