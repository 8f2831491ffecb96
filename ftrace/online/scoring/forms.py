"""The forms in which scores need examples' gradients, all read off one backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from ftrace.gradients import PerExampleGradients
from ftrace.online.scoring.early_products import EarlyProducts


@dataclass(frozen=True)
class Forms:
    """The gradients of the examples of one backward pass, as scores need them.

    Args:
        plain: Projected if there is a projection, otherwise unprojected.
        divided: As :meth:`WhitenedProducts.divided` returns them; None if they are yet to be divided.
        balanced: Projected with a balance; None if they are yet to be, or no kind needs them.
        balance: The key of that balance.
        unprojected: Unprojected; None where there is a projection and all forms were projected as they arrived.
        early: Products that were taken inside the backward pass, of parameters that are not in the other forms.
    """

    plain: PerExampleGradients
    divided: PerExampleGradients | None = None
    balanced: PerExampleGradients | None = None
    balance: int = 0
    unprojected: PerExampleGradients | None = None
    early: EarlyProducts | None = None

    @property
    def names(self) -> set[str]:
        """All parameters that have a gradient."""
        return {*self.plain.parts, *(() if self.early is None else self.early.names)}
