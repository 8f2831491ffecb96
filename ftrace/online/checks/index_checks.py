"""The check of an index's rows against the gradient of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ftrace.gradients import of_passes
from ftrace.index import GradientFeatures
from ftrace.online.checks.comparison import ROUNDINGS, rounding_of
from ftrace.online.checks.failures import Failures
from ftrace.online.processes import sum_over_processes


class IndexChecks:
    """The check, at the first step of each segment, that all rows sum to the row of the gradient.

    Args:
        parameters: The parameters that the index covers, by name.
        failures: Where to report.
        eps: Of the coarsest dtype that passes go through.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], failures: Failures, *, eps: float) -> None:
        self.parameters = parameters
        self.failures = failures
        self.eps = eps
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
        allowed = of_passes(self.eps) * expected.norm() + ROUNDINGS * rounding
        if bool(expected.isfinite().all()) and not (total - expected).norm() <= allowed:
            self.failures.report(
                f"at step {step} the examples' rows don't sum to the gradient's: off by "
                f"{float((total - expected).norm() / expected.norm()):.1e} of it, where rounding explains "
                f"{float(allowed / expected.norm()):.1e}"
            )
