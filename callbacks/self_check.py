"""Each run proves its own scores: by plain autograd at the start, by conservation at every step.

Neither replaces the other: conservation holds however examples are mixed up, and single examples are only looked at
once.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ftrace.gradients import PerExampleGradients, Projection, QueryGradients, Recording

# Rounding is some 1e-6 of these scales in float32 and 1e-15 in float64; a forgotten bias is 1e-2 and more.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
_DIRECTION_QUERIES = 4
_TINY = 1e-3  # a parameter whose gradient is smaller than this share of the whole may be all rounding


class SelfCheckError(RuntimeError):
    """What hooks read off the model does not agree with autograd."""


class SelfCheck:
    """The two checks of one training run.

    Args:
        parameters: The covered parameters by name.
        strict: Raise when a check fails; otherwise note it, and warn the first time.
        seed: Which examples are looked at.
        projection: What gradients are projected with, if they are: autograd's are, too, before they are compared.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, strict: bool, seed: int, projection: Projection | None = None
    ) -> None:
        self.parameters = dict(parameters)
        self.projection = projection
        self.strict = strict
        self.failures: list[str] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._by_autograd: dict[int, dict[str, Tensor]] = {}
        self._examples_checked = False
        self._window_totals: dict[str, Tensor] | None = {}
        self._magnitudes: dict[str, float] = {}
        self._weights_Q = torch.empty(0)
        self._queries: QueryGradients | None = None
        self._after_step_due = False
        self._last_norm = 0.0
        self._direction: dict[str, Tensor] = {}
        self._direction_norm = 0.0
        self._expected: tuple[float, float] | None = None

    def differentiate_examples(self, loss: Tensor, recording: Recording) -> None:
        """Before the first backward pass: gradients of two of the batch's examples, by autograd through its own graph.

        All other examples' gradients are cut off on their way down, so what reaches a parameter is one example's
        contribution, whatever the user's loss is. The graph is kept for the user's own backward pass.
        """
        if self._examples_checked:
            return
        picks = torch.randperm(recording.num_examples, generator=self._generator)[:2]
        for example in picks.tolist():
            with recording.just(example):
                self._by_autograd[example] = self._differentiate(loss)

    def compare_examples(self, gradients: PerExampleGradients, example_ids: Tensor) -> None:
        """After the first backward pass: hold the rules' gradients of the same examples against autograd's."""
        if self._examples_checked:
            return
        for example, expected in self._by_autograd.items():
            self._compare(f"example {int(example_ids[example])}", gradients, example, expected)
        self._by_autograd.clear()
        self._examples_checked = True

    def compare_query(self, losses: Tensor, gradients: PerExampleGradients, query_ids: Tensor) -> None:
        """Hold the rules' gradient of one query against autograd's.

        Args:
            losses: ``[Q]``, of a forward pass that nothing listened to.
            gradients: Gradients of the same queries, from a recorded pass.
            query_ids: ``[Q]``.
        """
        query = int(torch.randint(len(losses), (1,), generator=self._generator))
        expected = self._differentiate(losses[query])
        self._compare(f"query {int(query_ids[query])}", gradients, query, expected)

    def _differentiate(self, loss: Tensor) -> dict[str, Tensor]:
        wanted = {name: p for name, p in self.parameters.items() if p.requires_grad}
        try:
            found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise SelfCheckError(
                "OnlineTracIn self_check: autograd can't differentiate this model twice. Use non-reentrant activation "
                f"checkpointing, or self_check=False. It says: {error}"
            ) from error
        return self._projected({name: grad for name, grad in zip(wanted, found, strict=True) if grad is not None})

    def _projected(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.projection is None:
            return grads
        return {name: self.projection.project(name, grad.unsqueeze(0))[0] for name, grad in grads.items()}

    def _compare(self, who: str, gradients: PerExampleGradients, index: int, expected: Mapping[str, Tensor]) -> None:
        found = {name: gradients.dense(name, index, index + 1)[0] for name in gradients.parts}
        worst, error = _largest_difference(found, expected)
        if not error <= 1:
            self._fail(
                f"the gradient of {who} for {worst!r}, read off its layers, is not what autograd gives. A layer may "
                "mix examples, or not have them as its leading axis; or the loss may have a term of no example, such "
                "as a penalty on weights (use weight_decay)"
            )

    def set_queries(self, queries: QueryGradients) -> None:
        """After a refresh: choose the direction in which conservation is checked until the next one.

        It is the sum of a few random queries' unit gradients with random signs: a contribution that is wrong for one of
        them is wrong in this direction, and checking one direction costs one pass over the gradient.
        """
        self._queries = queries
        self._after_step_due = True

    def _find_direction(self) -> None:
        """Once products have been taken: what these have prepared makes it cheaper."""
        if self._queries is None:
            return
        queries, self._queries = self._queries, None
        last = max(0, len(queries) - _DIRECTION_QUERIES)
        start = int(torch.randint(last + 1, (), generator=self._generator))
        stop = min(start + _DIRECTION_QUERIES, len(queries))  # side by side, so that nothing is copied
        rows = {name: queries.gradients.dense(name, start, stop) for name in queries.gradients.parts}
        norms = queries.gradients.zeros(stop - start)
        for of_name in rows.values():
            norms += of_name.flatten(1).norm(dim=1) ** 2
        norms = norms.sqrt()
        signs = torch.randint(0, 2, (stop - start,), generator=self._generator).to(norms) * 2 - 1
        weights = torch.where(norms > 0, signs / norms, 0)
        self._weights_Q = norms.new_zeros(len(queries))
        self._weights_Q[start:stop] = weights
        direction = {name: torch.tensordot(weights, of_name, dims=1) for name, of_name in rows.items()}
        if self.projection is not None:
            shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
            direction = {n: self.projection.unproject(n, d, shapes[n]) for n, d in direction.items()}
        self._direction = direction
        self._direction_norm = _norm(direction.values())

    def add_to_window(self, gradients: PerExampleGradients) -> None:
        """In the first window, also add up the contributions themselves, parameter by parameter."""
        if self._window_totals is not None:
            for name in gradients.parts:
                self._window_totals[name] = self._window_totals.get(name, 0) + gradients.total(name)
                # sum_b |c_b| at most: what rounding goes by where contributions cancel
                magnitude = float((gradients.square_norms([name]).sum() * len(gradients)).sqrt())
                self._magnitudes[name] = self._magnitudes.get(name, 0.0) + magnitude

    def discard_window(self) -> None:
        """Forget a window whose gradients no optimizer step has used."""
        if self._window_totals is not None:
            self._window_totals, self._magnitudes = {}, {}

    @property
    def expects_gradient(self) -> bool:
        """Whether :meth:`check_gradient` is due: once after each refresh."""
        return self._expected is not None

    def check_gradient(self, norm: float, may_be_zeroed: bool, step: int) -> None:
        """After the optimizer's step: it must have been given the gradient of the contributions, clipped.

        Args:
            norm: Norm of the gradient that the optimizer has left.
            may_be_zeroed: Whether the module may have set it to zero after the step.
            step: The step that was taken.
        """
        noted, self._expected = self._expected, None
        if noted is None or (may_be_zeroed and norm == 0):
            return
        expected, along = noted
        found = self._along_direction()
        right = abs(norm - expected) <= 1e-3 * expected
        if not right or not abs(found - along) <= 1e-3 * (abs(along) + _TINY * self._direction_norm * expected):
            self._fail(
                f"at step {step} the optimizer was given a gradient of norm {norm:.6g} ({found:.6g} along the queries')"
                f" and contributions sum to one of {expected:.6g} ({along:.6g}). Something changes gradients behind "
                "the callback, such as the module's on_before_optimizer_step or another callback",
                remedy="Leave clipping to Trainer(gradient_clip_val=...) and gradients as they are",
            )

    def _along_direction(self) -> float:
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        products = [
            torch.dot(grads[name].flatten(), d.flatten()) for name, d in self._direction.items() if name in grads
        ]
        return float(torch.stack(products).sum()) if products else 0.0

    @property
    def wants_norm(self) -> bool:
        """Whether the next :meth:`check_window` needs the gradient's norm: once after each refresh."""
        return self._after_step_due

    def check_window(self, inner_products: Sequence[Tensor], clip: float, norm: float | None, step: int) -> None:
        """Before the optimizer's step: contributions must sum to the gradient that the optimizer gets.

        Also notes what that gradient must be after clipping, for :meth:`check_gradient`.

        Args:
            inner_products: For each batch of the window, ``<grad L_q, c_z>``, ``[B, Q]``, over covered parameters.
            clip: The clip factor that is about to be applied.
            norm: Norm of the gradient, over all parameters of the optimizer, where it is known.
            step: The optimizer step that is about to be taken.
        """
        grads = {name: p.grad.detach() for name, p in self.parameters.items() if p.grad is not None}
        self._find_direction()
        if self._window_totals is not None:
            worst, error = _largest_difference(self._window_totals, self._projected(grads), self._magnitudes)
            self._window_totals = None
            if not error <= 1:
                self._fail(
                    f"at step {step} the examples' contributions to {worst!r} don't sum to its gradient. It may be "
                    "used outside of its layer's forward, or its gradient changed by a hook"
                )
        in_direction = [products @ self._weights_Q.to(products) for products in inner_products]
        found = sum(float(values.sum()) for values in in_direction)
        expected = self._along_direction()
        if norm is not None:
            self._last_norm = norm
            self._expected = (clip * norm, clip * expected) if self._after_step_due else None
            self._after_step_due = False
        scale = self._direction_norm * self._last_norm + sum(float(v.abs().sum()) for v in in_direction)
        tolerance = _TOLERANCE[self._weights_Q.dtype] / 10
        if not abs(found - expected) <= tolerance * scale:  # NaN is no agreement
            self._fail(
                f"at step {step} the examples' products sum to {found:.6g}, and the gradient's to {expected:.6g}. "
                "Something in the model is not covered, or changed the gradient"
            )

    def _fail(self, problem: str, remedy: str = "Leave such parameters out with parameters=(...)") -> None:
        message = f"OnlineTracIn self_check: {problem}. {remedy}, or let training go on with strict=False."
        if self.strict:
            raise SelfCheckError(message)
        self.failures.append(problem)
        if len(self.failures) == 1:
            warnings.warn(message, stacklevel=3)


def _norm(tensors: object) -> float:
    return float(torch.nn.utils.get_total_norm(list(tensors)))  # type: ignore[call-overload]


def _largest_difference(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], magnitudes: Mapping[str, float] | None = None
) -> tuple[str, float]:
    """The parameter that differs most, and by how many times the tolerance.

    Args:
        found: By parameter.
        expected: By parameter.
        magnitudes: Where ``found`` is a sum that may cancel, the norms that were added up.
    """
    whole = _norm([*expected.values()])
    errors = {}
    for name in {**found, **expected}:
        f, e = found.get(name), expected.get(name)
        reference = e if e is not None else f
        assert reference is not None
        difference = (f if f is not None else 0) - (e if e is not None else torch.zeros_like(reference))
        scale = float(reference.norm()) if e is not None else 0.0
        allowed = _TOLERANCE[reference.dtype] * (scale + _TINY * (whole + (magnitudes or {}).get(name, 0.0)))
        error = float(difference.norm())
        errors[name] = error / allowed if allowed else (float("inf") if error else 0.0)
    worst = max(errors, key=errors.__getitem__, default="")
    return worst, errors.get(worst, 0.0)
