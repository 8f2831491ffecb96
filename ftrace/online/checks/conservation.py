"""Conservation: the contributions of all examples sum to the gradient of the step. Checked at every step.

It holds however examples are mixed up, so it doesn't replace the check of single examples (``step_check.py``), nor the
other way round: single examples are checked in few steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.gradients import PerExampleGradients, QueryGradients, flat_rows
from ftrace.online.checks.comparison import COARSE, TINY, TOLERANCE, Check, compare_gradients, projected, total_norm
from ftrace.online.checks.failures import Failures
from ftrace.online.processes import num_processes, sum_over_processes, whole
from ftrace.online.scoring.contributions import Contribution

_QUERIES_IN_DIRECTION = 4


class Conservation(Check):
    """Contributions must sum to the gradient that one optimizer is given: before its step, and after it."""

    _failures: Failures

    def __init__(self, parameters: Mapping[str, nn.Parameter], failures: Failures, **settings: Any) -> None:
        super().__init__(parameters, failures, **settings)
        self._window_totals: dict[str, Tensor] | None = {}
        self._magnitudes: dict[str, float] = {}
        self._weights_Q = torch.empty(0)
        self._queries: QueryGradients | None = None
        self._refresh = 0
        self._after_step_due = False
        self._last_norm = 0.0
        self._projected_direction: dict[str, Tensor] = {}
        self._direction: dict[str, Tensor] = {}
        self._direction_norm = 0.0
        self._expected: tuple[float, float] | None = None

    def set_queries(self, queries: QueryGradients, refresh: int) -> None:
        """After a refresh: choose the direction in which conservation is checked until the next one.

        It is the sum of a few random queries' unit gradients with random signs: a contribution that is wrong for one of
        them is wrong in this direction, and checking one direction costs one pass over the gradient.
        """
        self._queries, self._refresh = queries, refresh
        self._after_step_due = True

    def _find_direction(self) -> None:
        """Once products have been taken: what these have prepared makes it cheaper."""
        if self._queries is None:
            return
        queries, self._queries = self._queries, None
        last = max(0, len(queries) - _QUERIES_IN_DIRECTION)
        start = int(torch.randint(last + 1, (), generator=self._generator))
        stop = min(start + _QUERIES_IN_DIRECTION, len(queries))  # side by side, so that nothing is copied
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
        self._projected_direction = direction
        if self.projection is not None:
            shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
            direction = {n: self.projection.unproject(n, d, shapes[n]) for n, d in direction.items()}
        self._direction = direction
        self._direction_norm = total_norm(direction.values())

    def add_to_window(self, gradients: PerExampleGradients, factor: float) -> None:
        """In the first window, also add up the contributions themselves, parameter by parameter."""
        if self._window_totals is None:
            return
        for name in gradients.parts:
            if name not in self.parameters:
                continue
            self._window_totals[name] = self._window_totals.get(name, 0) + factor * gradients.total(name)
            # sum_b |c_b| at most: what rounding goes by where contributions cancel
            magnitude = factor * float((gradients.square_norms([name]).sum() * len(gradients)).sqrt())
            self._magnitudes[name] = self._magnitudes.get(name, 0.0) + magnitude

    def discard_window(self) -> None:
        """Forget a window whose gradients no optimizer step has used."""
        if self._window_totals is not None:
            self._window_totals, self._magnitudes = {}, {}

    @property
    def expects_gradient(self) -> bool:
        """Whether :meth:`check_gradient` is due: once after each refresh."""
        return self._expected is not None

    def check_gradient(self, norm: float, step: int, clip: float = 1.0) -> None:
        """After the optimizer's step: it must have been given the gradient of the contributions, clipped.

        Args:
            norm: Norm of the gradient that the optimizer has left.
            step: The step that was taken.
            clip: The clip factor, where it was not known before.
        """
        noted, self._expected = self._expected, None
        if noted is None:
            return
        expected, along = clip * noted[0], clip * noted[1]
        found = self._along_direction()
        right = abs(norm - expected) <= 1e-3 * expected
        if not right or not abs(found - along) <= 1e-3 * (abs(along) + TINY * self._direction_norm * expected):
            self._failures.report(
                f"at step {step} the optimizer was given a gradient of norm {norm:.6g} ({found:.6g} along the queries')"
                f" and contributions sum to one of {expected:.6g} ({along:.6g}). Something changes gradients behind "
                "the callback, such as the module's on_before_optimizer_step or another callback",
                remedy="Leave clipping to Trainer(gradient_clip_val=...) and gradients as they are",
            )

    def _along_direction(self) -> float:
        grads = {name: whole(p.grad) for name, p in self.parameters.items() if p.grad is not None}
        products = [
            torch.dot(grads[name].flatten().to(d), d.flatten()) for name, d in self._direction.items() if name in grads
        ]
        return float(torch.stack(products).sum()) if products else 0.0

    @property
    def wants_norm(self) -> bool:
        """Whether the next :meth:`check_window` needs the gradient's norm: once after each refresh."""
        return self._after_step_due

    def check_window(
        self,
        window: Sequence[Contribution],
        clip: float,
        norm: float | None,
        step: int,
        *,
        is_clipped: bool = False,
        look_after: bool = False,
    ) -> None:
        """Before the optimizer's step: contributions must sum to the gradient that the optimizer gets.

        Also notes what that gradient must be after clipping, for :meth:`check_gradient`.

        Args:
            window: What the gradient is the sum of.
            clip: The clip factor.
            norm: Norm of the gradient, over all parameters of the optimizer, where it is known.
            step: The optimizer step that is about to be taken.
            is_clipped: Whether it has been clipped already.
            look_after: Whether the gradient is to be looked at after this step in any case.
        """
        self._find_direction()
        done = clip if is_clipped else 1.0
        if self._window_totals is not None:
            grads = {name: whole(p.grad.detach()) for name, p in self.parameters.items() if p.grad is not None}
            like = projected(grads, self.projection)
            totals = {n: done * sum_over_processes(t) for n, t in self._all_ranks(like).items()}
            wrong = compare_gradients(totals, grads, self._magnitudes, projection=self.projection, coarse=self.coarse)
            self._window_totals = None
            if wrong:
                self._failures.report(
                    f"at step {step} the examples' contributions to {wrong[0]!r} don't sum to its gradient. It may be "
                    "used outside of its layer's forward, or its gradient changed by a hook"
                    + (", or after the backward pass by more than a factor" if is_clipped else ""),
                    names=wrong,
                )
        old = [one for one in window if one.refresh != self._refresh]  # their products are with other query gradients
        in_direction = [] if old else [done * self._along(one) for one in window]
        sums = [sum(float(v.sum()) for v in in_direction), sum(float(v.abs().sum()) for v in in_direction), len(old)]
        everywhere = sum_over_processes(torch.tensor(sums, dtype=torch.float64, device=self._device()))
        found, magnitude, any_old = everywhere.tolist()
        if any_old:
            return
        expected = self._along_direction()
        if norm is not None:
            self._last_norm = norm
            rest = 1.0 if is_clipped else clip
            self._expected = (rest * norm, rest * expected) if self._after_step_due or look_after else None
            self._after_step_due = False
        if not math.isfinite(found) and not math.isfinite(expected):  # a step that is left out anyway
            return
        scale = self._direction_norm * self._last_norm + magnitude
        tolerance = (COARSE if self.coarse else TOLERANCE[self._weights_Q.dtype]) / 10
        if not abs(found - expected) <= tolerance * scale:  # NaN is no agreement
            self._failures.report(
                f"at step {step} the examples' products sum to {found:.6g}, and the gradient's to {expected:.6g}. "
                "Something in the model is not covered, or changed the gradient"
            )

    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device if self.parameters else torch.device("cpu")

    def _all_ranks(self, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Totals of what any process may have: with several, each one must join in each sum."""
        assert self._window_totals is not None
        found = dict(self._window_totals)
        if num_processes() > 1:
            found = {name: torch.zeros_like(grad) for name, grad in grads.items()} | found
        return {name: found[name] for name in sorted(found)}

    def _along(self, one: Contribution) -> Tensor:
        """Products of contributions with the direction, ``[B]``."""
        if one.products is not None:
            return one.total(len(self._weights_Q)) @ self._weights_Q.to(
                next(iter(one.products.values()), torch.empty(0))
            )
        assert one.gradients is not None
        products = one.gradients.zeros(len(one.example_ids))
        for name, direction in self._projected_direction.items():
            if name in one.gradients.parts:
                products += one.gradients.along(name, direction)
        return one.factor * products
