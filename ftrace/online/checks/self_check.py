"""Each run proves its own scores: by plain autograd now and then, by conservation at every step.

Neither replaces the other: conservation holds however examples are mixed up, and single examples are looked at in few
steps (``rows.py``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.gradients import PerExampleGradients, Projection, QueryGradients, UnreadableError, flat_rows, leave_out
from ftrace.online.processes import num_processes, sum_over_processes, whole
from ftrace.online.scoring.contributions import Contribution

# Rounding is some 1e-6 of these scales in float32 and 1e-15 in float64; a forgotten bias is 1e-2 and more.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
_COARSE = 0.1  # bfloat16 rounds to 4e-3 and float16 to 5e-4, at every layer
_ROUNDINGS = 5  # one rounding differs from another by so many of it
_DIRECTION_QUERIES = 4
_TINY = 1e-3  # a parameter whose gradient is smaller than this share of the whole may be all rounding


class SelfCheckError(RuntimeError):
    """What hooks read off the model does not agree with autograd."""


class Failures:
    """What has been found wrong.

    Args:
        strict: Raise at the first one; otherwise note it, and warn the first time.
        who: Who checks.
        patterns: The globs that chose the parameters.
    """

    def __init__(self, *, strict: bool, who: str = "OnlineTracIn", patterns: Sequence[str] = ("*",)) -> None:
        self.strict = strict
        self.who = who
        self.patterns = tuple(patterns)
        self.found: list[str] = []

    def report(self, problem: str, remedy: str = "", names: Sequence[str] = ()) -> None:
        """Raise, or note and warn.

        Args:
            problem: What is wrong.
            remedy: What can be done about it; default: leaving parameters out.
            names: Those.

        Raises:
            SelfCheckError: When strict.
        """
        if not remedy:
            remedy = leave_out(names, self.patterns) if names else "Leave such parameters out with parameters=(...)"
        message = f"{self.who} self_check: {problem}. {remedy}, or let training go on with strict=False."
        if self.strict:
            raise SelfCheckError(message)
        self.found.append(problem)
        if len(self.found) == 1:
            warnings.warn(message, stacklevel=4)


class _Check:
    """What is checked, and how closely.

    Args:
        parameters: The covered parameters by name.
        failures: Where to report; None to look at sums only.
        seed: Of what is looked at.
        projection: What gradients are projected with, if they are: autograd's are, too, before they are compared.
        coarse: Whether passes are in half precision.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        failures: Failures | None,
        *,
        seed: int,
        projection: Projection | None,
        coarse: bool,
    ) -> None:
        self.parameters = dict(parameters)
        self.projection = projection
        self.coarse = coarse
        self._failures = failures
        self._generator = torch.Generator().manual_seed(seed)


class QueryCheck(_Check):
    """The first batch of queries against plain autograd: all together, and one of them alone."""

    def compare(self, losses: Tensor, gradients: PerExampleGradients, query_ids: Tensor, *, whole: bool) -> None:
        """Hold what is read off layers against autograd.

        Args:
            losses: ``[Q]``, of a forward pass that nothing listened to.
            gradients: Gradients of the same queries, from a recorded pass.
            query_ids: ``[Q]``.
            whole: Whether the gradients are not projected.

        Raises:
            UnreadableError: If parameters are used outside of the layers that they are read off.
        """
        projection = None if whole else self.projection
        names = [name for name in gradients.parts if name in self.parameters]
        expected = self._differentiate(losses.sum(), keep=True)
        magnitudes = {name: float((gradients.square_norms([name]).sum() * len(gradients)).sqrt()) for name in names}
        totals = {name: gradients.total(name) for name in names}
        elsewhere = compare_gradients(totals, expected, magnitudes, projection=projection, coarse=self.coarse)
        if elsewhere:
            raise UnreadableError(f"queries use {elsewhere[0]!r} outside of the layers that it is read off", elsewhere)
        if self._failures is None:
            return
        query = int(torch.randint(len(losses), (1,), generator=self._generator))
        expected = self._differentiate(losses[query], keep=False)
        own = {name: gradients.dense(name, query, query + 1)[0] for name in names}
        wrong = compare_gradients(own, expected, projection=projection, coarse=self.coarse)
        if wrong:
            self._failures.report(
                f"the gradient of query {int(query_ids[query])} for {wrong[0]!r}, read off its layers, is not what "
                "autograd gives. A layer may mix queries",
                names=wrong,
            )

    def _differentiate(self, loss: Tensor, *, keep: bool) -> dict[str, Tensor]:
        wanted = {name: p for name, p in self.parameters.items() if p.requires_grad}
        found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=keep or None, allow_unused=True)
        return {name: grad for name, grad in zip(wanted, found, strict=True) if grad is not None}


class Conservation(_Check):
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
        last = max(0, len(queries) - _DIRECTION_QUERIES)
        start = int(torch.randint(last + 1, (), generator=self._generator))
        stop = min(start + _DIRECTION_QUERIES, len(queries))  # side by side, so that nothing is copied
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
        self._direction_norm = _norm(direction.values())

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
        if not right or not abs(found - along) <= 1e-3 * (abs(along) + _TINY * self._direction_norm * expected):
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
                    "used outside of its layer's forward, or its gradient changed by a hook",
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
        tolerance = (_COARSE if self.coarse else _TOLERANCE[self._weights_Q.dtype]) / 10
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


def projected(grads: Mapping[str, Tensor], projection: Projection | None) -> dict[str, Tensor]:
    """Gradients by parameter, projected if there is a projection."""
    if projection is None:
        return dict(grads)
    return {name: projection.project(name, grad.unsqueeze(0))[0] for name, grad in grads.items()}


def _norm(tensors: object) -> float:
    return float(torch.nn.utils.get_total_norm(list(tensors)))  # type: ignore[call-overload]


def rounding_of(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients with all elements set to zero but those that are so small that they may be nothing but rounding.

    A bias before a softmax has such a gradient. Whoever divides by the optimizer's second moments makes numbers of the
    usual size out of it.
    """
    largest = max((float(grad.abs().amax()) for grad in gradients.values() if grad.numel()), default=0.0)
    return {
        name: torch.where(grad.abs() <= torch.finfo(grad.dtype).eps ** 0.85 * largest, grad, 0)
        for name, grad in gradients.items()
    }


def compare_gradients(
    found: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    magnitudes: Mapping[str, float] | None = None,
    *,
    projection: Projection | None = None,
    coarse: bool = False,
) -> list[str]:
    """The parameters whose gradients differ by more than rounding, the worst first.

    Args:
        found: By parameter; projected, if there is a projection.
        gradients: What they must be, by parameter.
        magnitudes: Where ``found`` is a sum that may cancel, the norms that were added up.
        projection: What ``found`` is projected with.
        coarse: Whether passes are in half precision.
    """
    expected = projected(gradients, projection)
    noise = {} if projection is None else projected(rounding_of(gradients), projection)
    whole = _norm([*expected.values()])
    errors = {}
    for name in {**found, **expected}:
        f, e = found.get(name), expected.get(name)
        reference = e if e is not None else f
        assert reference is not None
        difference = (f if f is not None else 0) - (e if e is not None else torch.zeros_like(reference))
        scale = float(reference.norm()) if e is not None else 0.0
        allowed = (_COARSE if coarse else _TOLERANCE.get(reference.dtype, _COARSE)) * (
            scale + _TINY * (whole + (magnitudes or {}).get(name, 0.0))
        )
        if name in noise:
            allowed += _ROUNDINGS * float(noise[name].norm())
        error = float(difference.norm())
        if not error <= allowed:  # NaN is no agreement
            errors[name] = error / allowed if allowed else math.inf
    return sorted(errors, key=errors.__getitem__, reverse=True)
