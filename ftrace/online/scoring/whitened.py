"""Whitened cosines during training: ``phi = R^(-1/2) P (grad / sqrt(V))`` with a running R.

This does at every step what TrackStar does at one snapshot (Chang et al. 2024, arXiv 2410.17413, section 3). Gradients
of examples and queries are divided by the root of the optimizer's second moments V, projected by P, and whitened by the
autocorrelation R of the examples' gradients of the last steps, each parameter by itself. The score is the cosine over
all parameters. V and R are those of the last refresh, so that queries and examples are treated alike. R is the identity
before the first refresh that follows a step, and in the first interval in which there are second moments, since it has
no examples then. A parameter whose R isn't known yet, while that of others is, counts from the next refresh on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ftrace.arguments import Name, Positive, PositiveNumber, checked
from ftrace.gradients import (
    PerExampleGradients,
    Preconditioner,
    Projection,
    RunningAutocorrelation,
    cosines,
    flat_rows,
    layer_of,
    learning_weights,
    match_globs,
    precondition,
    project,
    whiteners,
)
from ftrace.online.processes import sum_over_processes
from ftrace.online.scoring.white_stacks import WhiteStack, in_stacks, with_queries
from ftrace.scores import Sum


@checked
@dataclass(frozen=True)
class Whitening:
    """Settings for scores of the kinds ``whitened`` and ``learning``.

    Args:
        window: The number of optimizer steps over which the examples' autocorrelation is averaged, exponentially.
        damping: The number that is added to its diagonal, as a fraction of its mean eigenvalue.
        parameters: Globs over the names of the covered parameters, in order; one that begins with "!" excludes.
        preconditioner: What gradients are divided by if the optimizer keeps second moments: "rank-one", the root of the
            closest outer product to these; "elementwise", their root as it is, for which each example's gradient of
            each weight is formed unprojected; "none". Vectors are always divided elementwise.

    Raises:
        ValueError: If a number is out of range or an option unknown.
    """

    window: Positive = 100
    damping: PositiveNumber = 0.1
    parameters: tuple[Name, ...] = ("*",)
    preconditioner: Literal["rank-one", "elementwise", "none"] = "rank-one"


class WhitenedProducts:
    """The running state of whitened scores.

    Args:
        rules: The settings.
        projection: The projection P.
        names: The covered parameters.
        divides: Whether the optimizer keeps second moments.
        by_layer: Whether cosines are broken down by layer.
        kinds: The kinds that :meth:`cosines` returns, of "whitened" and "learning".

    Attributes:
        divides: Whether gradients are divided by the root of second moments before they are projected, and so must be
            given unprojected.
        autocorrelation: The running autocorrelation of this process's examples.
        preconditioners: By parameter, one over the root of second moments at the last refresh.
        names: The parameters that the scores use.

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
        self.names: tuple[str, ...] = ()
        self._projection = projection
        self._whitens = False
        self._stacks: list[WhiteStack] = []
        self._query_norms = torch.empty(0)
        self._learning_weights = torch.empty(0)
        self.cover(names)

    def cover(self, names: Collection[str]) -> None:
        """Take the names of the parameters that are now covered."""
        chosen = match_globs(self.rules.parameters, {name: [name] for name in names}, "whitening: parameters")
        self.names = tuple(sorted(chosen))
        if not self._whitens:
            known = self.queries
            self._set_stacks([])
            self._stacks = with_queries(self._stacks, lambda stack: {n: known[n] for n in stack.names if n in known})

    def precondition_with(self, preconditioners: Mapping[str, Preconditioner], *, restored: bool = False) -> None:
        """Take new second moments.

        Args:
            preconditioners: By parameter, one over their root.
            restored: Whether the autocorrelation was computed with the same ones.
        """
        if not restored:  # a parameter's earlier gradients, which were not divided, have another scale
            self.autocorrelation.forget(preconditioners.keys() - self.preconditioners.keys())
        self.preconditioners = dict(preconditioners)
        self._projection = self.projection
        if self.preconditioners and self.rules.preconditioner == "rank-one":
            self._projection = self.projection.preconditioned(self.preconditioners)

    def refresh(self, queries: PerExampleGradients) -> None:
        """Compute whiteners from the examples of all processes, and take new query gradients. All must call it.

        Args:
            queries: The query gradients, as :meth:`divided` returns them.
        """
        self._make_whiteners(queries)
        self.take_queries(queries)

    def take_queries(self, queries: PerExampleGradients) -> None:
        """Take new query gradients, as :meth:`divided` returns them, for the current whiteners."""

        def whitened(stack: WhiteStack) -> dict[str, Tensor]:
            rows = {name: flat_rows(queries.dense(name)) for name in stack.names if name in queries.parts}
            if not rows:
                return {}
            names, white, _ = stack.white(rows)
            return {name: of_name for name, of_name in zip(names, white.unbind(), strict=True) if name in rows}

        self._take(with_queries(self._stacks, whitened), queries)

    def take_whitened(self, whitened: Mapping[str, Tensor], queries: PerExampleGradients) -> None:
        """Take query gradients that are whitened already, as :attr:`queries` returns them.

        Args:
            whitened: By parameter, ``[Q, D]``.
            queries: The gradients that they are made of, in any form.
        """
        self._take(
            with_queries(self._stacks, lambda stack: {n: whitened[n] for n in stack.names if n in whitened}), queries
        )

    def _take(self, stacks: list[WhiteStack], queries: PerExampleGradients) -> None:
        self._stacks = stacks
        squares = [stack.queries.square().sum((0, 2)) for stack in stacks if stack.queries is not None]
        self._query_norms = torch.stack(squares).sum(0).sqrt() if squares else queries.zeros(len(queries))

    @property
    def queries(self) -> dict[str, Tensor]:
        """The whitened query gradients, by parameter, ``[Q, D]``."""
        return {
            name: of_name
            for stack in self._stacks
            if stack.queries is not None
            for name, of_name in zip(stack.names, stack.queries.unbind(), strict=True)
            if name in stack.queried
        }

    @property
    def whiteners(self) -> dict[str, Tensor]:
        """By parameter, the matrix that whitens its projected gradients, as of the last refresh, ``[D, D]``."""
        return {
            name: of_name
            for stack in self._stacks
            if stack.matrices is not None
            for name, of_name in zip(stack.names, stack.matrices.unbind(), strict=True)
        }

    def weigh(self, losses: Tensor, lengths: Tensor | None) -> None:
        """Take the losses of the queries at the last refresh, and the lengths of their answers, as in a refresh."""
        self._learning_weights = learning_weights(losses, lengths)

    def _make_whiteners(self, like: PerExampleGradients) -> None:
        """Make whiteners of all parameters that examples had a gradient of, in any process."""
        size = self.projection.side**2
        known = self.autocorrelation
        weights = like.zeros(len(self.names)).double()
        weights += torch.tensor([known.weights.get(name, 0.0) for name in self.names], dtype=torch.float64).to(weights)
        total = dict(zip(self.names, sum_over_processes(weights).tolist(), strict=True))
        stacks = []
        for names in in_stacks([name for name in self.names if total[name] > 0]):
            empty = like.zeros(size, size)
            sums = torch.stack([known.sums.get(name, empty).to(empty) for name in names])
            mean = sum_over_processes(sums) / sums.new_tensor([total[name] for name in names])[:, None, None]
            stacks.append(WhiteStack(names, whiteners(mean, self.rules.damping)))
        self._set_stacks(stacks)

    def _set_stacks(self, stacks: list[WhiteStack]) -> None:
        """Take whiteners; without any, all parameters count as they are, and otherwise those that have one."""
        self._whitens = bool(stacks)
        self._stacks = stacks or [WhiteStack(names) for names in in_stacks(self.names)]

    def divided(self, gradients: PerExampleGradients) -> PerExampleGradients:
        """Divide gradients of examples or queries, and project them.

        Args:
            gradients: The gradients; unprojected if :attr:`divides`, otherwise projected, then returned as they are.

        Returns:
            Those of :attr:`names`.
        """
        chosen = gradients.only(self.names)
        if self.divides:
            if self.rules.preconditioner == "elementwise":
                factors: dict[str, float | Preconditioner] = {
                    name: self.preconditioners.get(name, 1.0) for name in chosen.parts
                }
                chosen = precondition(chosen, factors)
            chosen = project(chosen, self._projection)
        return chosen

    @property
    def divides_elementwise(self) -> bool:
        """Whether gradients are divided element by element, so that they can't be projected as they arrive."""
        return self.divides and self.rules.preconditioner == "elementwise"

    @property
    def dividing(self) -> Projection:
        """The projection that divides gradients as well, unless they are divided element by element."""
        return self._projection

    def rows(self, divided: PerExampleGradients, names: Collection[str]) -> dict[str, Tensor]:
        """Return divided gradients by parameter, ``[n, D]``.

        Args:
            divided: As :meth:`divided` returns them.
            names: The parameters, of which those of :attr:`names` are taken.
        """
        wanted = set(names).intersection(self.names)
        return {name: flat_rows(divided.dense(name)) for name in divided.parts if name in wanted}

    def cosines(self, projected: Mapping[str, Tensor], names: Iterable[str]) -> dict[Sum, Tensor]:
        """Compute whitened cosines of examples with queries, ``[B, Q]``, of each kind: in total and by layer.

        Args:
            projected: The examples' gradients, as :meth:`rows` returns them.
            names: The parameters of the optimizer to whose gradients they contribute.
        """
        wanted = {name: projected[name] for name in names if name in projected}
        by_layer: dict[str, Tensor] = {}
        square_norms: Tensor | None = None
        for stack in self._stacks:
            rows = {name: wanted[name] for name in stack.names if name in wanted}
            if not rows:
                continue
            taken, white, queries = stack.white(rows)
            squares = white.square().sum((0, 2))
            square_norms = squares if square_norms is None else square_norms + squares
            if queries is None or not stack.queried & rows.keys():
                continue
            products = torch.bmm(white, queries.transpose(1, 2))
            places: dict[str, list[int]] = {}
            for place, name in enumerate(taken):
                if name in rows and name in stack.queried:
                    places.setdefault(layer_of(name) if self.by_layer else "", []).append(place)
            for layer, of_layer in places.items():
                total = products[of_layer].sum(0)
                by_layer[layer] = by_layer[layer] + total if layer in by_layer else total
        if square_norms is None or not by_layer:
            return {}
        norms = square_norms.sqrt()
        parts = {("", ""): torch.stack(list(by_layer.values())).sum(0)}
        if self.by_layer:
            parts |= {("layer", layer): products for layer, products in by_layer.items()}
        scores: dict[Sum, Tensor] = {}
        for part, products in parts.items():
            values = cosines(products, norms, self._query_norms)
            if "whitened" in self.kinds:
                scores[Sum("whitened", *part)] = values
            if "learning" in self.kinds:
                scores[Sum("learning", *part)] = values * self._learning_weights.to(values)
        return scores

    def step(self, contributions: Iterable[Mapping[str, Tensor]], names: Iterable[str]) -> None:
        """Update the autocorrelation after a step of an optimizer.

        Args:
            contributions: The contributions to its gradients, as :meth:`rows` returns them.
            names: Its parameters.
        """
        self.autocorrelation.step(set(names), list(contributions))

    def state(self) -> dict[str, Any]:
        """Return this process's sums, and the state that all processes share."""
        return {
            "sums": dict(self.autocorrelation.sums),
            "weights": dict(self.autocorrelation.weights),
            "whiteners": self.whiteners,
            "preconditioners": dict(self.preconditioners),
        }

    def load(self, states: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned.

        Args:
            states: The states of the processes that this one takes over.
            shared: The state of any process.
        """
        for state in states:
            self.autocorrelation.add_sums(state["sums"], state["weights"])
        loaded: dict[str, Tensor] = shared["whiteners"]
        self._set_stacks(
            [WhiteStack(names, torch.stack([loaded[name] for name in names])) for names in in_stacks(list(loaded))]
        )
        self.precondition_with(shared["preconditioners"], restored=True)


class QueryReduction:
    """What projects query gradients batch by batch, plainly and for whitening, so that none stay as they are.

    Args:
        whitened: The state of whitened scores.
    """

    def __init__(self, whitened: WhitenedProducts) -> None:
        self._whitened = whitened
        self._divided: list[PerExampleGradients] = []

    def __call__(self, gradients: PerExampleGradients) -> PerExampleGradients:
        """Keep a batch's gradients as whitening divides and projects them, and return them projected plainly."""
        self._divided.append(self._whitened.divided(gradients))
        return project(gradients, self._whitened.projection)

    @property
    def divided(self) -> PerExampleGradients:
        """The gradients of all batches so far, as :meth:`WhitenedProducts.divided` returns them."""
        return PerExampleGradients.stack(self._divided)
