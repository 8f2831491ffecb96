"""Whitened cosines during training: ``phi = R^(-1/2) P (grad / sqrt(V))`` with a running R.

What TrackStar does at one snapshot (Chang et al. 2024, arXiv 2410.17413, section 3), at every step: gradients of both
sides are divided by the root of the optimizer's second moments, projected, and whitened by the autocorrelation R of the
examples' gradients of the last steps, each parameter by itself; the score is the cosine over all of them. V and R are
those of the last refresh, so that queries and examples are treated alike. Before the first refresh that follows a step,
nothing has been seen, and R is the identity; the same goes for the first interval in which there are second moments. A
parameter of which nothing has been seen, while others' R is known, counts from the next refresh on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ftrace.gradients import (
    PerExampleGradients,
    Preconditioner,
    Projection,
    RunningAutocorrelation,
    cosines,
    flat_rows,
    layer_of,
    match_globs,
    precondition,
    project,
    whitener,
)
from ftrace.online.processes import sum_over_processes
from ftrace.scores import Sum


@dataclass(frozen=True)
class Whitening:
    """How scores of the kinds ``whitened`` and ``learning`` are made.

    Args:
        window: Optimizer steps over which the examples' autocorrelation is averaged, exponentially.
        damping: What is added to its diagonal, as a share of its mean eigenvalue.
        parameters: Globs over the names of the covered parameters, in order; one that begins with "!" takes away.
        preconditioner: What gradients are divided by where the optimizer keeps second moments: "rank-one", the root of
            the closest outer product to them; "elementwise", their root as it is, which forms each example's gradient
            of each weight whole; "none". Vectors are always divided elementwise.

    Raises:
        ValueError: If a number is out of range or an option unknown.
    """

    window: int = 100
    damping: float = 0.1
    parameters: tuple[str, ...] = ("*",)
    preconditioner: Literal["rank-one", "elementwise", "none"] = "rank-one"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"whitening: window: expected at least 1 step, found {self.window}")
        if not self.damping > 0:
            raise ValueError(f"whitening: damping: expected a number above 0, found {self.damping}")
        known = ("rank-one", "elementwise", "none")
        if self.preconditioner not in known:
            raise ValueError(f"whitening: preconditioner: expected one of {known}, found {self.preconditioner!r}")


class WhitenedProducts:
    """The running state behind whitened scores.

    Args:
        rules: How.
        projection: What gradients are projected with.
        names: The covered parameters.
        divides: Whether the optimizer keeps second moments.
        by_layer: Whether cosines are broken down by layer.
        kinds: Of "whitened" and "learning": what :meth:`cosines` gives.

    Attributes:
        divides: Whether gradients are divided by their root before they are projected, so that they come whole.
        autocorrelation: Of this process's examples.
        preconditioners: Of the last refresh.

    Raises:
        ValueError: If ``rules.parameters`` matches no covered parameter.
    """

    def __init__(
        self,
        rules: Whitening,
        projection: Projection,
        names: Collection[str],
        *,
        divides: bool,
        by_layer: bool,
        kinds: Collection[str] = ("whitened",),
    ) -> None:
        self.rules = rules
        self.divides = divides and rules.preconditioner != "none"
        self.projection = projection
        self.by_layer = by_layer
        self.kinds = kinds
        self.autocorrelation = RunningAutocorrelation(rules.window)
        self.preconditioners: dict[str, Preconditioner] = {}
        self.whiteners: dict[str, Tensor] = {}
        self.names: tuple[str, ...] = ()
        self._projection = projection
        self._queries: dict[str, Tensor] = {}
        self._query_norms = torch.empty(0)
        self._learning_weights = torch.empty(0)
        self.see(names)

    def see(self, names: Collection[str]) -> None:
        """These parameters are covered from here on."""
        chosen = match_globs(self.rules.parameters, {name: [name] for name in names}, "whitening: parameters")
        self.names = tuple(sorted(chosen))

    def precondition_with(self, preconditioners: Mapping[str, Preconditioner], *, restored: bool = False) -> None:
        """New second moments.

        Args:
            preconditioners: One over their roots, by parameter.
            restored: Whether they are those that the autocorrelation was made with.
        """
        if not restored:  # what was seen before a parameter had any is of another scale
            self.autocorrelation.forget(preconditioners.keys() - self.preconditioners.keys())
        self.preconditioners = dict(preconditioners)
        self._projection = self.projection
        if self.preconditioners and self.rules.preconditioner == "rank-one":
            self._projection = self.projection.preconditioned(self.preconditioners)

    def refresh(self, queries: PerExampleGradients) -> None:
        """New query gradients, and whiteners of all that processes have seen. All processes must call it.

        Args:
            queries: Whole where it :attr:`divides`, otherwise projected.
        """
        self.whiteners = self._make_whiteners(queries)
        self.take_queries(queries)

    def take_queries(self, queries: PerExampleGradients) -> None:
        """Query gradients for the whiteners that there are."""
        projected = self.project(queries)
        self._queries = {name: self._whitened(name, phi) for name, phi in projected.items() if self._counts(name)}
        squares = [u.square().sum(1) for u in self._queries.values()]
        self._query_norms = torch.stack(squares).sum(0).sqrt() if squares else queries.zeros(len(queries))

    def weigh(self, losses: Tensor) -> None:
        """Losses of the queries at the last refresh, ``[Q]``, in nats."""
        self._learning_weights = learning_weights(losses)

    def _make_whiteners(self, like: PerExampleGradients) -> dict[str, Tensor]:
        size = self.projection.side**2
        found = {}
        for name in self.names:
            sums = self.autocorrelation.sums.get(name, like.zeros(size, size)).double()
            weight = sums.new_tensor([self.autocorrelation.weights.get(name, 0.0)])
            both = sum_over_processes(torch.cat([sums.flatten(), weight]))
            if both[-1] > 0:
                mean = (both[:-1] / both[-1]).view(size, size)
                found[name] = whitener(mean, self.rules.damping).to(like.dtype)
        return found

    def project(self, gradients: PerExampleGradients) -> dict[str, Tensor]:
        """Gradients of examples or queries, preconditioned where they are to be, and projected: ``[n, D]`` each."""
        own = gradients.only(self.names)
        if self.divides:
            if self.rules.preconditioner == "elementwise":
                factors: dict[str, float | Preconditioner] = {
                    name: self.preconditioners.get(name, 1.0) for name in own.parts
                }
                own = precondition(own, factors)
            own = project(own, self._projection)
        return {name: flat_rows(own.dense(name)) for name in own.parts}

    def _counts(self, name: str) -> bool:
        """Once some parameters are white, others would outweigh them, or vanish beside them."""
        return not self.whiteners or name in self.whiteners

    def _whitened(self, name: str, phi: Tensor) -> Tensor:
        return phi @ self.whiteners[name].to(phi) if name in self.whiteners else phi

    def cosines(self, projected: Mapping[str, Tensor], names: Iterable[str]) -> dict[Sum, Tensor]:
        """Cosines of examples with queries, ``[B, Q]``, of each kind, as a whole and, where there are layers, by layer.

        Args:
            projected: As :meth:`project` gives them.
            names: The parameters of the optimizer that they are contributions to.
        """
        by_layer: dict[str, Tensor] = {}
        square_norms: Tensor | None = None
        for name in names:
            if name not in projected or not self._counts(name):
                continue
            white = self._whitened(name, projected[name])
            own = white.square().sum(1)
            square_norms = own if square_norms is None else square_norms + own
            if name in self._queries:
                layer = layer_of(name) if self.by_layer else ""
                products = white @ self._queries[name].T
                by_layer[layer] = by_layer[layer] + products if layer in by_layer else products
        if square_norms is None or not by_layer:
            return {}
        norms = square_norms.sqrt()
        parts = {("", ""): torch.stack(list(by_layer.values())).sum(0)}
        if self.by_layer:
            parts |= {("layer", layer): products for layer, products in by_layer.items()}
        found: dict[Sum, Tensor] = {}
        for part, products in parts.items():
            values = cosines(products, norms, self._query_norms)
            if "whitened" in self.kinds:
                found[Sum("whitened", *part)] = values
            if "learning" in self.kinds:
                found[Sum("learning", *part)] = values * self._learning_weights.to(values)
        return found

    def step(self, contributions: Iterable[Mapping[str, Tensor]], names: Iterable[str]) -> None:
        """An optimizer has taken a step.

        Args:
            contributions: To the gradients of its parameters, as :meth:`project` gives them.
            names: Its parameters.
        """
        self.autocorrelation.age(names)
        for one in contributions:
            self.autocorrelation.add(one)

    def state(self) -> dict[str, Any]:
        """Return this process's sums, and what all processes share."""
        return {
            "sums": dict(self.autocorrelation.sums),
            "weights": dict(self.autocorrelation.weights),
            "whiteners": dict(self.whiteners),
            "preconditioners": dict(self.preconditioners),
        }

    def load(self, states: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> None:
        """Add up what processes have seen.

        Args:
            states: Of the processes whose part this one takes up.
            shared: Of any process.
        """
        for state in states:
            self.autocorrelation.add_sums(state["sums"], state["weights"])
        self.whiteners = dict(shared["whiteners"])
        self.precondition_with(shared["preconditioners"], restored=True)


def learning_weights(losses: Tensor) -> Tensor:
    """``p (1 - p)`` with ``p = exp(-loss)``, ``[Q]``: how fast p moves with its logit.

    Cosines say nothing of how much a step matters to a query. This does: next to nothing before the answer is known at
    all, most where it is being learned, and nothing any more once it is certain.
    """
    p = torch.exp(-losses.clamp(min=0))
    return p * (1 - p)
