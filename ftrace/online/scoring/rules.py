"""What scores are made of, and how."""

from __future__ import annotations

from dataclasses import dataclass

from ftrace.gradients import Projection
from ftrace.online.scoring.whitened import Whitening

KINDS = ("dot", "update", "cosine", "whitened", "learning")
OF_THE_STEP = {"cosine", "whitened", "learning"}  # kinds that are not interpolated between refreshes


@dataclass(frozen=True)
class ScoringRules:
    """How scores are made of steps.

    Args:
        kinds: Of :data:`KINDS`.
        trapezoid: Whether query gradients are interpolated between refreshes.
        exact_momentum: Whether ``update`` follows momentum step by step instead of booking its whole later effect.
        breakdown: Of "layer", "epoch" and "learned".
        projection: What gradients are projected with.
        whitening: How gradients are whitened.
    """

    kinds: tuple[str, ...]
    trapezoid: bool = False
    exact_momentum: bool = False
    breakdown: tuple[str, ...] = ()
    projection: Projection | None = None
    whitening: Whitening = Whitening()  # noqa: RUF009 - frozen

    @property
    def whitens(self) -> bool:
        """Whether a kind of whitened scores is asked for."""
        return not {"whitened", "learning"}.isdisjoint(self.kinds)
