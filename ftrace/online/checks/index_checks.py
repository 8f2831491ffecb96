"""The check of an index's rows against the gradient of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ftrace.index import GradientFeatures
from ftrace.online.checks.comparison import rounding_of
from ftrace.online.checks.failures import Failures
from ftrace.online.processes import sum_over_processes


class IndexChecks:
    """The check, at the first step of each segment, that all rows sum to the row of the gradient.

    Args:
        parameters: The parameters that the index covers, by name.
        failures: Where to report.
        half_precision: Whether passes run in half precision.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], failures: Failures, *, half_precision: bool) -> None:
        self.parameters = parameters
        self.failures = failures
        self.half_precision = half_precision
        self._wants_sum = False

    def begin_segment(self) -> None:
        """Check again at the next step, since rows are made by other features from here on."""
        self._wants_sum = True

    def before_step(self, features: GradientFeatures, rows: Sequence[tuple[Tensor, Tensor]], step: int) -> None:
        """Check that a step's rows sum to the row of the gradient that the optimizer gets. All processes must call it.

        Args:
            features: The features that made the rows.
            rows: Of each backward pass, the rows ``[B, D]`` and their examples' ids ``[B]``.
            step: The step that is about to be taken.
        """
        given = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not self._wants_sum or not given:
            return
        self._wants_sum = False
        like = next(iter(given.values()))
        like = like if like.dtype in (torch.float32, torch.float64) else like.float()
        expected = features.row_of(given, like)
        here = torch.stack([of_pass.sum(0) for of_pass, _ in rows]).sum(0) if rows else expected * 0
        total = sum_over_processes(here.to(expected))
        rounding = features.row_of(rounding_of(given), like).norm()
        allowed = (0.1 if self.half_precision else 1e-3) * expected.norm() + 5 * rounding
        if bool(expected.isfinite().all()) and not (total - expected).norm() <= allowed:
            self.failures.report(
                f"at step {step} the examples' rows don't sum to the gradient's: off by "
                f"{float((total - expected).norm() / expected.norm()):.1e} of it"
            )
