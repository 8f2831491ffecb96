"""The rules by which scores are computed."""

from __future__ import annotations

from dataclasses import dataclass

from ftrace.gradients import Projection
from ftrace.online.scoring.whitened import Whitening

KINDS = ("dot", "update", "cosine", "whitened", "learning")
PER_STEP_KINDS = {"cosine", "whitened", "learning"}  # not interpolated between refreshes


@dataclass(frozen=True)
class ScoringRules:
    """The rules by which scores are computed from steps.

    Args:
        kinds: The kinds of scores, some of :data:`KINDS`.
        trapezoid: Whether query gradients are interpolated between refreshes.
        exact_momentum: Whether ``update`` follows momentum step by step instead of booking its later effect at once.
        breakdown: Some of "layer", "epoch" and "learned".
        projection: The projection of gradients; None if products are exact.
        whitening: How gradients are whitened.
        moments_tolerance: By how much of its norm a step may differ from the one that earlier second moments would
            give, before projected directions for ``update`` are prepared anew.
    """

    kinds: tuple[str, ...]
    trapezoid: bool = False
    exact_momentum: bool = False
    breakdown: tuple[str, ...] = ()
    projection: Projection | None = None
    whitening: Whitening = Whitening()  # noqa: RUF009 - frozen
    moments_tolerance: float = 0.0

    @property
    def whitens(self) -> bool:
        """Whether a kind of whitened scores is asked for."""
        return not {"whitened", "learning"}.isdisjoint(self.kinds)
