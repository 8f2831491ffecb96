"""What causal tracing finds of one prompt.

Shape letters: L layers, T tokens, O outcomes (in the order of :data:`OUTCOMES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Outcome = Literal["probability", "log_probability", "logit_difference"]
OUTCOMES: tuple[Outcome, ...] = ("probability", "log_probability", "logit_difference")
Status = Literal["traced", "wrong", "refused"]
Stack = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class StackTrace:
    """The grids of one stack of layers; a decoder-only model has a decoder only.

    Args:
        tokens: The stack's tokens, readable, ``[T]``.
        subject: Half-open range of the subject's places; empty in the decoder of an encoder-decoder.
        restored: For each mediator, the outcomes with it restored, means over noise samples, float64 ``[O, L, T]``.
        spread: Standard deviations over noise samples (over n - 1; 0 of a single one), likewise.
    """

    tokens: tuple[str, ...]
    subject: tuple[int, int]
    restored: Mapping[str, np.ndarray]
    spread: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PromptTrace:
    """What was found of one prompt, or why it was left out.

    Args:
        name: The prompt's name.
        status: "traced"; "wrong", if the model doesn't answer it rightly; "refused", if it can't be traced.
        reason: Why it was left out; empty if it was not.
        prompt: The text.
        subject: The subject in it.
        answers: Accepted surfaces, the own one first.
        fact: Key of the fact, where known.
        query_id: The query that it is, where it is one.
        rank: Rank of the answer's first token in the clean run, from 1; None where no run was possible.
        answer_tokens: Tokens of each accepted answer whose probability is measured.
        foil_token: The token whose logit the answer's is compared with.
        sigma: What noise was measured by; None where nothing was added.
        clean: The outcomes of the clean run, ``[O]``.
        corrupted: The outcomes of the corrupted runs, means over noise samples, ``[O]``.
        stacks: The grids, by stack.
    """

    name: str
    status: Status
    reason: str
    prompt: str
    subject: str
    answers: tuple[str, ...]
    fact: str | None = None
    query_id: int | None = None
    rank: int | None = None
    answer_tokens: tuple[tuple[int, ...], ...] = ()
    foil_token: int | None = None
    sigma: float | None = None
    clean: np.ndarray = field(default_factory=lambda: np.full(len(OUTCOMES), np.nan))
    corrupted: np.ndarray = field(default_factory=lambda: np.full(len(OUTCOMES), np.nan))
    stacks: Mapping[Stack, StackTrace] = field(default_factory=dict)

    def total_effect(self, outcome: Outcome = "probability") -> float:
        """Clean minus corrupted."""
        place = OUTCOMES.index(outcome)
        return float(self.clean[place] - self.corrupted[place])

    def indirect_effect(self, stack: Stack, mediator: str, outcome: Outcome = "probability") -> np.ndarray:
        """Restored minus corrupted, ``[L, T]``; never clipped: it may exceed the total effect, or be below 0."""
        place = OUTCOMES.index(outcome)
        effect: np.ndarray = self.stacks[stack].restored[mediator][place] - self.corrupted[place]
        return effect
