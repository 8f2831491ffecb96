"""The check of queries' gradients against plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ftrace.gradients import PerExampleGradients, Projection, UnreadableError, reduced_gradients
from ftrace.online.checks.comparison import Check, compare_gradients, projected, projected_all, reduction


class QueryCheck(Check):
    """The check of the first batch of queries against plain autograd: all together, and one of them alone."""

    def compare(self, losses: Tensor, gradients: PerExampleGradients, query_ids: Tensor, *, unprojected: bool) -> None:
        """Compare gradients that were read off layers with those that autograd computes.

        Args:
            losses: ``[Q]``, of a forward pass that was not recorded.
            gradients: Gradients of the same queries, from a recorded pass.
            query_ids: ``[Q]``.
            unprojected: Whether the gradients are not projected.

        Raises:
            UnreadableError: If parameters are used outside of the layers that they are read off.
        """
        projection = self.projection

        def reading(of_parameter: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
            if not unprojected:
                return of_parameter
            return lambda name: projected(name, of_parameter(name), projection)

        names = [name for name in gradients.parts if name in self.parameters]
        expected, noise = self._differentiate(losses.sum(), projection, keep=True)
        magnitudes = {name: float((gradients.square_norms([name]).sum() * len(gradients)).sqrt()) for name in names}
        elsewhere = compare_gradients(names, reading(gradients.total), expected, magnitudes, noise, eps=self.eps)
        if elsewhere:
            raise UnreadableError(f"queries use {elsewhere[0]!r} outside of the layers that it is read off", elsewhere)
        if self._failures is None:
            return
        query = int(torch.randint(len(losses), (1,), generator=self._generator))
        expected, noise = self._differentiate(losses[query], projection, keep=False)

        def of_query(name: str) -> Tensor:
            return gradients.dense(name, query, query + 1)[0]

        wrong = compare_gradients(names, reading(of_query), expected, noise=noise, eps=self.eps)
        if wrong:
            self._failures.report(
                f"the gradient of query {int(query_ids[query])} for {wrong[0]!r}, read off its layers, is not what "
                "autograd gives. A layer may mix queries",
                names=wrong,
            )

    def _differentiate(
        self, loss: Tensor, projection: Projection | None, *, keep: bool
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        wanted = {name: p for name, p in self.parameters.items() if p.requires_grad}
        reduce = reduction(projection)
        with reduced_gradients(wanted, reduce) as reduced:
            grads = torch.autograd.grad(loss, list(wanted.values()), retain_graph=keep or None, allow_unused=True)
        if reduce is not None:
            return reduced, {}
        given = {name: grad for name, grad in zip(wanted, grads, strict=True) if grad is not None}
        return projected_all(given, projection)
