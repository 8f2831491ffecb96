"""The options of joining causal effects to scores. Parsers of commands read them, so this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ftrace.arguments import Count, Name, Positive, checked
from ftrace.causal import MEDIATORS
from ftrace.causal.profiles import Reduction


@checked
@dataclass(frozen=True)
class JoinSettings:
    """The options that decide how causal effects are joined to scores.

    Args:
        kind: Of the store's kinds of scores; default: the first that there is.
        summed_over: "top": the k strongest proponents. "ground_truth": the examples that state the query's fact.
        k: How many proponents are summed over, and at most listed below a picture.
        mediator: Whose causal effects.
        reduction: What becomes of a layer's effects at several tokens: their "sum", the "largest", or the one at the
            "place" of the subject's last token (in a decoder that doesn't read the subject, its last token).
        pictures: Of how many queries to draw pictures, evenly drawn from all; None: of all.
        listed: How many proponents to list below a picture.

    Raises:
        ValueError: If an option is out of range.
    """

    kind: Name | None = None
    summed_over: Literal["top", "ground_truth"] = "top"
    k: Positive = 10
    mediator: Name = "mlp"
    reduction: Reduction = "sum"
    pictures: Count | None = 10
    listed: Positive = 5

    def __post_init__(self) -> None:
        if self.mediator not in MEDIATORS:
            raise ValueError(f"mediator: expected one of {MEDIATORS}, found {self.mediator!r}")
