"""The result of causal tracing for one prompt.

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
        tokens: The stack's tokens as readable texts, ``[T]``.
        subject: Half-open range of the subject's positions; empty in the decoder of an encoder-decoder.
        restored: For each mediator, the outcomes when it is restored, averaged over noise samples, float64
            ``[O, L, T]``.
        spread: Their standard deviations over noise samples (over n - 1; 0 if there is one sample), likewise.
    """

    tokens: tuple[str, ...]
    subject: tuple[int, int]
    restored: Mapping[str, np.ndarray]
    spread: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PromptTrace:
    """The result of tracing one prompt, or the reason why it was left out.

    Args:
        name: The prompt's name.
        status: "traced"; "wrong", if the model doesn't answer the prompt correctly; "refused", if it can't be traced.
        reason: Why the prompt was left out; empty if it was not.
        prompt: The text.
        subject: The subject in the text.
        answers: Accepted surfaces, the prompt's own one first.
        fact: Key of the fact, if known.
        query_id: The query's id, if the prompt is a query.
        rank: Rank of the answer's first token in the clean run, from 1; None if there was no run.
        answer_tokens: Tokens of each accepted answer whose probability is measured.
        foil_token: The token whose logit is subtracted from the answer's.
        sigma: The unit of noise; None if none was used.
        clean: The outcomes of the clean run, ``[O]``.
        corrupted: The outcomes of the corrupted runs, averaged over noise samples, ``[O]``.
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
        """Return the clean outcome minus the corrupted one."""
        index = OUTCOMES.index(outcome)
        return float(self.clean[index] - self.corrupted[index])

    def indirect_effect(self, stack: Stack, mediator: str, outcome: Outcome = "probability") -> np.ndarray:
        """Return restored minus corrupted outcomes, ``[L, T]``, not clipped: above the total effect or below 0, too."""
        index = OUTCOMES.index(outcome)
        effect: np.ndarray = self.stacks[stack].restored[mediator][index] - self.corrupted[index]
        return effect
