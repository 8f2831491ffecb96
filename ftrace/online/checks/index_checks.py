"""Rows of an index, held against the gradient of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ftrace.index import GradientFeatures
from ftrace.online.checks.comparison import rounding_of
from ftrace.online.checks.failures import Failures
from ftrace.online.processes import sum_over_processes


class IndexChecks:
    """At the first step of each segment, the sum of all rows against the gradient.

    Args:
        parameters: That the index sees, by name.
        failures: Where to report.
        coarse: Whether passes are in half precision.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], failures: Failures, *, coarse: bool) -> None:
        self.parameters = parameters
        self.failures = failures
        self.coarse = coarse
        self._wants_sum = False

    def begin_segment(self) -> None:
        """Rows are made by other features from here on."""
        self._wants_sum = True

    def before_step(self, features: GradientFeatures, window: Sequence[tuple[Tensor, Tensor]], step: int) -> None:
        """The rows of a window must sum to the row of the gradient that the optimizer gets. All processes must call it.

        Args:
            features: That made the rows.
            window: Rows, and their examples' ids.
            step: Which step.
        """
        given = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not self._wants_sum or not given:
            return
        self._wants_sum = False
        like = next(iter(given.values()))
        like = like if like.dtype in (torch.float32, torch.float64) else like.float()
        expected = features.row_of(given, like)
        found = torch.stack([rows.sum(0) for rows, _ in window]).sum(0) if window else expected * 0
        total = sum_over_processes(found.to(expected))
        rounding = features.row_of(rounding_of(given), like).norm()
        allowed = (0.1 if self.coarse else 1e-3) * expected.norm() + 5 * rounding
        if bool(expected.isfinite().all()) and not (total - expected).norm() <= allowed:
            self.failures.report(
                f"at step {step} the examples' rows don't sum to the gradient's: off by "
                f"{float((total - expected).norm() / expected.norm()):.1e} of it"
            )
