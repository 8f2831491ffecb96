"""The check that queries' losses can be -log of probabilities, which scores of the kind ``learning`` take them for."""

from __future__ import annotations

from torch import Tensor

from ftrace.gradients import of_passes
from ftrace.online.messages import warn

_REMEDY = (
    "Rank by `whitened`, or make the loss -log of a probability: of a margin or an activation m, -logsigmoid(m) "
    "(docs/queries.md)"
)


class ProbabilityCheck:
    """The queries whose losses were below 0 at some refresh, so that exp(-loss) is no probability.

    Args:
        who: Whose messages these are.

    Attributes:
        negative: Their ids.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.negative: set[int] = set()

    def check(self, losses: Tensor, query_ids: Tensor, step: int, *, eps: float, is_first: bool) -> None:
        """Look at the losses of one refresh.

        Args:
            losses: ``[Q]``.
            query_ids: ``[Q]``.
            step: The next optimizer step.
            eps: Of the passes that compute losses; what their rounding explains is taken for 0.
            is_first: Whether training has not begun, so that a wrong loss is an error. Later on it is a warning.

        Raises:
            ValueError: At the first refresh, if a loss is below 0.
        """
        is_negative = losses < -of_passes(eps)
        if not is_negative.any():
            return
        found = query_ids[is_negative].tolist()
        message = (
            f"{self.who}: `learning` weights steps by a query's probability exp(-loss), so it expects losses of at "
            f"least 0, found {float(losses.min()):.3g} at step {step}, and numbers below 0 for {len(found)} of "
            f"{len(losses)} queries: {found[:5]}"
        )
        if is_first:
            raise ValueError(f"{message}. {_REMEDY}")
        if not self.negative:
            warn(f"{message}. Their `learning` scores mean nothing. {_REMEDY}")
        self.negative |= set(found)
