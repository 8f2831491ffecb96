"""The check of queries' gradients against plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from ftrace.gradients import PerExampleGradients, UnreadableError
from ftrace.online.checks.comparison import Check, compare_gradients


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
        projection = None if unprojected else self.projection
        names = [name for name in gradients.parts if name in self.parameters]
        expected = self._differentiate(losses.sum(), keep=True)
        magnitudes = {name: float((gradients.square_norms([name]).sum() * len(gradients)).sqrt()) for name in names}
        totals = {name: gradients.total(name) for name in names}
        elsewhere = compare_gradients(totals, expected, magnitudes, projection=projection, eps=self.eps)
        if elsewhere:
            raise UnreadableError(f"queries use {elsewhere[0]!r} outside of the layers that it is read off", elsewhere)
        if self._failures is None:
            return
        query = int(torch.randint(len(losses), (1,), generator=self._generator))
        expected = self._differentiate(losses[query], keep=False)
        of_query = {name: gradients.dense(name, query, query + 1)[0] for name in names}
        wrong = compare_gradients(of_query, expected, projection=projection, eps=self.eps)
        if wrong:
            self._failures.report(
                f"the gradient of query {int(query_ids[query])} for {wrong[0]!r}, read off its layers, is not what "
                "autograd gives. A layer may mix queries",
                names=wrong,
            )

    def _differentiate(self, loss: Tensor, *, keep: bool) -> dict[str, Tensor]:
        wanted = {name: p for name, p in self.parameters.items() if p.requires_grad}
        grads = torch.autograd.grad(loss, list(wanted.values()), retain_graph=keep or None, allow_unused=True)
        return {name: grad for name, grad in zip(wanted, grads, strict=True) if grad is not None}
