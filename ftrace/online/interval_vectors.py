"""What the ledger adds up between two refreshes, in the parameters' shapes, and its products with query gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ftrace.gradients import Projection, flat_rows
from ftrace.online.queries.query_pass import Refresh


class IntervalVectors:
    """Sums of vectors over the steps of an interval: plain, and weighted by the steps' positions in it.

    Attributes:
        sums: By parameter, the sum.
        late: By parameter, the sum weighted by the steps' positions.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.late: dict[str, Tensor] = {}

    def add(self, name: str, vector: Tensor, position: float | None) -> None:
        """Add one step's vector, whose memory is taken over.

        Args:
            name: The parameter.
            vector: The vector, in the parameter's shape.
            position: The number of steps since the refresh, plus 1/2; None if query gradients aren't interpolated.
        """
        if position is not None:
            self.late[name] = self.late[name].add_(vector, alpha=position) if name in self.late else position * vector
        self.sums[name] = self.sums[name].add_(vector) if name in self.sums else vector

    def only(self, names: Collection[str]) -> IntervalVectors:
        """Select the sums of some parameters."""
        selected = IntervalVectors()
        selected.sums = {name: vector for name, vector in self.sums.items() if name in names}
        selected.late = {name: vector for name, vector in self.late.items() if name in names}
        return selected

    def at_start(self, name: str, steps: int) -> Tensor | None:
        """Return a parameter's sum as it is multiplied with the query gradients at the interval's start.

        Args:
            name: The parameter.
            steps: The number of steps in the interval.
        """
        total, late = self.sums.get(name), self.late.get(name)
        return total if total is None or late is None else total - late / steps

    def at_end(self, name: str, steps: int) -> Tensor | None:
        """Return the same for the query gradients at the interval's end; None without interpolation."""
        late = self.late.get(name)
        return None if late is None else late / steps


class QueryProducts:
    """Sums over parameters of inner products with the query gradients of one refresh.

    Args:
        projection: The projection of these gradients; None if they are not projected.

    Attributes:
        totals: By vector, ``[Q]`` float64.
    """

    def __init__(self, refresh: Refresh, projection: Projection | None) -> None:
        self._refresh = refresh
        self._projection = projection
        self.totals: dict[str, Tensor] = {}

    def add(
        self, name: str, vectors: Mapping[str, Tensor | None], projected: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add one parameter's products with several vectors.

        Args:
            name: The parameter.
            vectors: By key, in the parameter's shape, of float32 at least; None adds nothing.
            projected: Others that are projected already.
        """
        given = {key: vector for key, vector in vectors.items() if vector is not None}
        projected = projected or {}
        gradients, rows = self._refresh.gradients, self._refresh.uncovered.get(name)
        if name in gradients.parts and (given or projected):
            if self._projection is not None and given:
                by_key = self._projection.project(name, torch.stack(list(given.values())))
                given = dict(zip(given, by_key, strict=True))
            products = gradients.along_each(name, [*given.values(), *projected.values()])
            for key, of_key in zip([*given, *projected], products, strict=True):
                self._add(key, of_key)
        if rows is not None:
            for key, vector in {**given, **projected}.items():
                flat, along = flat_rows(rows), vector.flatten().to(rows)
                if flat.is_complex():  # real and imaginary parts are separate parameters
                    flat, along = torch.view_as_real(flat).flatten(1), torch.view_as_real(along).flatten()
                self._add(key, flat @ along)

    def _add(self, key: str, products: Tensor) -> None:
        products = products.double().cpu()
        self.totals[key] = self.totals[key] + products if key in self.totals else products

    def total(self, key: str) -> Tensor:
        """Return the sum of a vector's products; 0 if it has none."""
        return self.totals.get(key, torch.zeros(len(self._refresh.gradients), dtype=torch.float64))
