"""The forms in which scores need examples' gradients, all read off one backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from ftrace.gradients import PerExampleGradients


@dataclass(frozen=True)
class Forms:
    """The gradients of the examples of one backward pass, as scores need them.

    Args:
        plain: Projected if there is a projection, otherwise unprojected.
        divided: As :meth:`WhitenedProducts.divided` returns them; None if they are yet to be divided.
        balanced: Projected with the current balance; None if they are yet to be, or no kind needs them.
        unprojected: Unprojected; None where there is a projection and all forms were projected as they arrived.
    """

    plain: PerExampleGradients
    divided: PerExampleGradients | None = None
    balanced: PerExampleGradients | None = None
    unprojected: PerExampleGradients | None = None
