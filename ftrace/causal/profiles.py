"""Layer profiles of causal effects: one number for each layer of a prompt's grids.

The grids have a number for each layer and token. A profile reduces the tokens to one number, so that it can be compared
with others by layer, such as scores of training examples. Effects are never clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from ftrace.causal.prompt_trace import Outcome, PromptTrace, Stack

Reduction = Literal["sum", "largest", "place"]
"""
How a layer's effects at a prompt's tokens become one number. "sum": their sum, as a layer's score is a sum over tokens,
too. "largest": the largest. "place": the effect at the subject's last token, or in a stack that doesn't read the
subject, at its last token.
"""
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
IN_WORDS: Mapping[Reduction, str] = {
    "sum": "summed over tokens",
    "largest": "the largest over tokens",
    "place": "at the subject's last token, in a decoder that doesn't read it at its last token",
}


def effect_profile(
    trace: PromptTrace,
    layer_names: Mapping[Stack, Sequence[str]],
    mediator: str = "mlp",
    reduction: Reduction = "sum",
    outcome: Outcome = "probability",
) -> dict[str, float]:
    """Reduce a mediator's indirect effects at all tokens to one number for each layer.

    Args:
        trace: The trace of a prompt that was traced.
        layer_names: The names of each stack's layers; see :attr:`ftrace.causal.CausalTracer.layer_names`.
        mediator: The mediator whose effects to take.
        reduction: See :data:`Reduction`.
        outcome: The outcome that effects are on.

    Returns:
        The effect by layer name: stack by stack, from the lowest layer.

    Raises:
        ValueError: If the prompt was not traced, or not with this mediator, or there are not as many names as layers.
    """
    if not trace.stacks:
        why = f": {trace.reason}" if trace.reason else ""
        raise ValueError(f"expected a prompt that was traced, found {trace.name!r} with status {trace.status!r}{why}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, found {reduction!r}")
    effects: dict[str, float] = {}
    for stack, stack_trace in trace.stacks.items():
        if mediator not in stack_trace.restored:
            raise ValueError(
                f"prompt {trace.name!r}: expected a mediator that was traced in the {stack}, "
                f"{sorted(stack_trace.restored)}, found {mediator!r}. Trace it too, or choose another"
            )
        effects_LT = trace.indirect_effect(stack, mediator, outcome)
        names = layer_names.get(stack, ())
        if len(names) != len(effects_LT):
            raise ValueError(
                f"prompt {trace.name!r}: expected names of the {len(effects_LT)} layers of its {stack}, found "
                f"{len(names)}. Is it the trace of another model?"
            )
        effects.update(zip(names, _reduced(effects_LT, stack_trace.subject, reduction).tolist(), strict=True))
    return effects


def _reduced(effects_LT: np.ndarray, subject: tuple[int, int], reduction: Reduction) -> np.ndarray:
    if reduction == "sum":
        total: np.ndarray = effects_LT.sum(1)
        return total
    if reduction == "largest":
        largest: np.ndarray = effects_LT.max(1)
        return largest
    start, end = subject
    at_place: np.ndarray = effects_LT[:, end - 1 if end > start else -1]
    return at_place


def flat_stacks(profiles: Sequence[Mapping[str, float]], layer_names: Mapping[Stack, Sequence[str]]) -> list[Stack]:
    """Find stacks of several layers in which all layers have the same effect, whatever the prompt.

    This happens if windows reach over all layers of a stack: whichever layer they are around, they restore the same.

    Args:
        profiles: The prompts' profiles, as :func:`effect_profile` gives them.
        layer_names: As :func:`effect_profile` takes them.
    """
    return [
        stack
        for stack, names in layer_names.items()
        if len(names) > 1 and all(len({profile[name] for name in names if name in profile}) < 2 for profile in profiles)
    ]
