"""The check of conservation, at every step: the contributions of all examples must sum to the gradient of the step.

Conservation also holds if contributions are assigned to the wrong examples, so this check doesn't replace the one of
single examples (``step_check.py``). Nor does that one replace this, since it looks at few steps only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.gradients import PerExampleGradients, QueryGradients, coarsest_eps, flat_rows, of_passes
from ftrace.online.checks.comparison import TINY, Check, compare_gradients, projected, projected_all
from ftrace.online.checks.failures import Failures
from ftrace.online.processes import num_processes, sum_over_processes, unsharded
from ftrace.online.scoring.contributions import Contribution

_QUERIES_IN_DIRECTION = 4


class Conservation(Check):
    """The check that contributions sum to the gradient that one optimizer gets: before its step, and after it."""

    _failures: Failures

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], failures: Failures, *, clip: str, **settings: Any
    ) -> None:
        super().__init__(parameters, failures, **settings)
        self._clip = clip  # how messages name what may clip gradients
        self._first_totals: dict[str, Tensor] | None = {}
        self._magnitudes: dict[str, float] = {}
        self._weights_Q = torch.empty(0)
        self._queries: QueryGradients | None = None
        self._refresh = 0
        self._after_step_due = False
        self._last_norm = 0.0
        self._direction: dict[str, Tensor] = {}
        self._direction_norm = 0.0
        self._expected: tuple[float, float] | None = None

    def set_queries(self, queries: QueryGradients, refresh: int) -> None:
        """Take the queries of a refresh, from which the direction of the check is made until the next refresh.

        The direction is the sum of a few random queries' unit gradients with random signs. A contribution that is wrong
        for one of these queries is wrong along this direction, and checking one direction costs one pass over the
        gradient.
        """
        self._queries, self._refresh = queries, refresh
        self._after_step_due = True

    def _find_direction(self) -> None:
        """Make the direction, after the first products, which have already made the query gradients dense."""
        if self._queries is None:
            return
        queries, self._queries = self._queries, None
        last = max(0, len(queries) - _QUERIES_IN_DIRECTION)
        start = int(torch.randint(last + 1, (), generator=self._generator))
        stop = min(start + _QUERIES_IN_DIRECTION, len(queries))  # consecutive ones, so that nothing is copied
        names = [name for name in queries.gradients.parts if name in self.parameters]
        rows = {name: queries.gradients.dense(name, start, stop) for name in names}
        norms = queries.gradients.zeros(stop - start)
        for of_name in rows.values():
            norms += flat_rows(of_name).norm(dim=1) ** 2
        norms = norms.sqrt()
        signs = torch.randint(0, 2, (stop - start,), generator=self._generator).to(norms) * 2 - 1
        weights = torch.where(norms > 0, signs / norms, 0)
        self._weights_Q = norms.new_zeros(len(queries))
        self._weights_Q[start:stop] = weights
        direction = {name: torch.tensordot(weights, of_name, dims=1) for name, of_name in rows.items()}
        self._direction = direction
        norm = math.hypot(*(float(self._unprojected(n, d).norm()) for n, d in direction.items()))
        # Gradients of queries may cancel, such as those of a margin and its opposite. What rounding leaves is relative
        # to the unit gradients, so the direction counts as no smaller than one of them.
        self._direction_norm = norm / min(1.0, math.hypot(*(float(d.norm()) for d in direction.values())) or 1.0)

    def _unprojected(self, name: str, direction: Tensor) -> Tensor:
        """Return the direction in a parameter's shape that has the same products with gradients."""
        if self.projection is None:
            return direction
        return self.projection.unproject(name, direction, self.parameters[name].shape)

    @property
    def adds_up(self) -> bool:
        """Whether :meth:`add_contributions` is of use: until the first step."""
        return self._first_totals is not None

    def add_contributions(self, gradients: PerExampleGradients, factor: float) -> None:
        """Until the first step, also add up the contributions themselves, parameter by parameter."""
        if self._first_totals is None:
            return
        for name in gradients.parts:
            if name not in self.parameters:
                continue
            self._first_totals[name] = self._first_totals.get(name, 0) + factor * gradients.total(name)
            # an upper bound of sum_b |c_b|, to which rounding errors are proportional even if contributions cancel
            magnitude = factor * float((gradients.square_norms([name]).sum() * len(gradients)).sqrt())
            self._magnitudes[name] = self._magnitudes.get(name, 0.0) + magnitude

    def discard_contributions(self) -> None:
        """Forget contributions to gradients that no optimizer step has used."""
        if self._first_totals is not None:
            self._first_totals, self._magnitudes = {}, {}

    @property
    def wants_check_after_step(self) -> bool:
        """Whether :meth:`check_after_step` is due: once after each refresh."""
        return self._expected is not None

    def check_after_step(self, norm: float, step: int, clip: float = 1.0) -> None:
        """Check after the optimizer's step that it got the gradient that contributions sum to, clipped.

        Args:
            norm: Norm of the gradient that the parameters hold after the step.
            step: The step that was taken.
            clip: The clip factor, if it was unknown before the step.
        """
        expectation, self._expected = self._expected, None
        if expectation is None:
            return
        expected_norm, expected_product = clip * expectation[0], clip * expectation[1]
        product = self._along_direction()
        # Clipping rounds each number once, and the factor: what passes go through before doesn't matter here.
        eps = coarsest_eps(p.grad.dtype for p in self.parameters.values() if p.grad is not None)
        tolerance = of_passes(eps)
        has_norm = abs(norm - expected_norm) <= tolerance * expected_norm
        allowed = tolerance * abs(expected_product)
        allowed += max(TINY * tolerance, eps) * self._direction_norm * expected_norm  # numbers that cancel
        if not has_norm or not abs(product - expected_product) <= allowed:
            self._failures.report(
                f"at step {step} the optimizer stepped with a gradient of norm {norm:.6g} ({product:.6g} along the "
                f"queries'), but before the step, and clipped, it was one of norm {expected_norm:.6g} "
                f"({expected_product:.6g}), where rounding explains a share of {tolerance:.1g}. Something changed it "
                "in between: a hook, another callback, or clipping of another kind or to another norm",
                remedy=f"Leave clipping to {self._clip} and gradients as they are",
            )

    def _along_direction(self) -> float:
        """Compute the inner product of the current gradient with the direction."""
        grads = {name: unsharded(p.grad) for name, p in self.parameters.items() if p.grad is not None}
        products = [
            torch.dot(projected(name, grads[name], self.projection).flatten().to(d), d.flatten())
            for name, d in self._direction.items()
            if name in grads
        ]
        return float(torch.stack(products).sum()) if products else 0.0

    @property
    def wants_norm(self) -> bool:
        """Whether the next :meth:`check_before_step` needs the gradient's norm: once after each refresh."""
        return self._after_step_due

    def check_before_step(
        self,
        contributions: Sequence[Contribution],
        clip: float,
        norm: float | None,
        step: int,
        *,
        gradient_scale: float = 1.0,
        is_clipped: bool = False,
        check_after: bool = False,
    ) -> None:
        """Check before the optimizer's step that contributions sum to the gradient that it gets.

        Also remembers what that gradient must be after clipping, for :meth:`check_after_step`.

        Args:
            contributions: All contributions to the gradient.
            clip: The clip factor.
            norm: Norm of the gradient, over all parameters of the optimizer; None if it isn't known.
            step: The optimizer step that is about to be taken.
            gradient_scale: What the gradient is still multiplied by, and the step is going to divide it by.
            is_clipped: Whether the gradient has been clipped already.
            check_after: Whether to check after this step even if there was no refresh.
        """
        self._find_direction()
        clip_so_far = clip if is_clipped else 1.0
        if self._first_totals is not None:
            given = {name: unsharded(p.grad.detach()) for name, p in self.parameters.items() if p.grad is not None}
            grads = given if gradient_scale == 1 else {name: grad / gradient_scale for name, grad in given.items()}
            of_step, noise = projected_all(grads, self.projection)
            totals = {n: clip_so_far * sum_over_processes(t) for n, t in self._all_ranks(of_step).items()}
            wrong = compare_gradients(totals, totals.__getitem__, of_step, self._magnitudes, noise, eps=self.eps)
            self._first_totals = None
            if wrong:
                self._failures.report(
                    f"at step {step} the examples' contributions to {wrong[0]!r} don't sum to its gradient. It may be "
                    "used outside of its layer's forward, or its gradient changed by a hook"
                    + (
                        ", or after the backward pass by more than a factor, as clipping by value does"
                        if is_clipped
                        else ""
                    ),
                    names=wrong,
                )
        # Contributions from before the last refresh were multiplied with other query gradients.
        num_old = sum(contribution.refresh != self._refresh for contribution in contributions)
        products = [] if num_old else [clip_so_far * self._along(contribution) for contribution in contributions]
        sums = [sum(float(v.sum()) for v in products), sum(float(v.abs().sum()) for v in products), num_old]
        everywhere = sum_over_processes(torch.tensor(sums, dtype=torch.float64, device=self._device()))
        product, magnitude, any_old = everywhere.tolist()
        if any_old:
            return
        expected = self._along_direction() / gradient_scale
        if norm is not None:
            self._last_norm = norm
            clip_still = 1.0 if is_clipped else clip
            self._expected = (clip_still * norm, clip_still * expected) if self._after_step_due or check_after else None
            self._after_step_due = False
        if not math.isfinite(product) and not math.isfinite(expected):  # such a step is left out anyway
            return
        scale = self._direction_norm * self._last_norm + magnitude
        allowed = of_passes(self.eps) / 10 * scale  # of one product over all parameters, whose errors average out
        if not abs(product - expected) <= allowed:  # also if one is NaN
            self._failures.report(
                f"at step {step} the examples' products sum to {product:.6g}, and the gradient's to {expected:.6g}, "
                f"where rounding explains a difference of {allowed:.2g}. Part of the gradient may not be covered, or a "
                "hook may have changed it"
            )

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device if self.parameters else torch.device("cpu")

    def _all_ranks(self, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return totals in the same order on all processes, zeros included, since each process must join each sum."""
        assert self._first_totals is not None
        totals = dict(self._first_totals)
        if num_processes() > 1:
            totals = {name: torch.zeros_like(grad) for name, grad in grads.items()} | totals
        return {name: totals[name] for name in sorted(totals)}

    def _along(self, contribution: Contribution) -> Tensor:
        """Compute the inner products of a contribution's examples with the direction, ``[B]``."""
        if contribution.products is not None:
            like = next(iter(contribution.products.values()), torch.empty(0))
            return contribution.total(len(self._weights_Q)) @ self._weights_Q.to(like)
        gradients = contribution.gradients
        assert gradients is not None
        products = gradients.zeros(len(contribution.example_ids))
        for name, direction in self._direction.items():
            if name in gradients.parts:
                products += gradients.along(name, direction)
        return contribution.factor * products
