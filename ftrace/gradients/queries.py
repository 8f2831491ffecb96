"""The queries of products: prepared once, multiplied with many batches of examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ftrace.gradients.costs import Rates, Shape, Way, measured_rates, shape_of_parts
from ftrace.gradients.parts import Dense, Factored, flat_rows
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.product_plans import WAYS, Plan, PlanLine, PlanOptions, plan_parameter

MEMORY_BUDGET = 2 * 2**30


class QueryGradients:
    """Gradients of Q queries, which plan their products with batches of examples.

    A parameter's products are taken in one of three ways: ``gram``, from the factors of examples and queries;
    ``materialised``, from the dense gradients of both; ``contraction``, of the examples' factors with the queries'
    dense gradients. The plan has the cheapest for each parameter, by the device's measured rates. Results don't depend
    on it.

    Args:
        gradients: Gradients of the Q queries. They belong to this object from here on: where dense ones are kept,
            their factors are dropped.
        way: Take this way wherever there is a choice; default: the cheapest one.
        memory_budget: Bytes that products may take beyond the gradients' factors: seven eighths for the queries' dense
            gradients that are kept, an eighth for temporary tensors. Results don't depend on it.
        batches: About how many batches of examples will be multiplied with these queries.
        rates: The device's rates; default: measured.

    Raises:
        ValueError: On an unknown way, or a budget or number of batches that is not positive.

    Example:
        >>> from ftrace.gradients import Outer, inner_products
        >>> parts = {"weight": [Outer(torch.ones(2, 3, 4), torch.ones(2, 3, 5))]}
        >>> gradients = PerExampleGradients(parts, {"weight": torch.Size([4, 5])}, 2)
        >>> inner_products(gradients, QueryGradients(gradients), ["weight"])
        tensor([[180., 180.],
                [180., 180.]])
    """

    def __init__(
        self,
        gradients: PerExampleGradients,
        way: Way | None = None,
        memory_budget: int = MEMORY_BUDGET,
        batches: float = 1,
        rates: Rates | None = None,
    ) -> None:
        if way not in (None, *WAYS):
            raise ValueError(f"way: expected one of {list(WAYS)} or None, found {way!r}")
        if memory_budget < 1 or not batches > 0:
            raise ValueError(f"expected memory_budget and batches above 0, found {memory_budget} and {batches}")
        self.gradients = gradients
        self.memory_budget = memory_budget
        self.chunk_bytes = max(1, memory_budget // 8)
        number = gradients.zeros()
        self.options = PlanOptions(rates or measured_rates(number.device, number.dtype), way, batches)
        self._bytes_left = memory_budget - self.chunk_bytes
        self._dense_QP: dict[str, Tensor] = {}
        self._joined_QP: dict[tuple[str, ...], Tensor] = {}
        self._memory: Tensor | None = None
        self._spare_QP: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.gradients)

    def replace(self, gradients: PerExampleGradients) -> None:
        """Take the same queries' gradients at new weights, in the memory of the previous ones."""
        self._spare_QP, self._dense_QP = self._dense_QP, {}
        self._joined_QP.clear()
        self._bytes_left = self.memory_budget - self.chunk_bytes
        self.gradients = gradients

    def plan(self, examples: PerExampleGradients, names: Iterable[str] | None = None, *, norms: bool = False) -> Plan:
        """Plan the products with such examples, as they will be taken; print the plan to read it.

        Args:
            examples: Gradients of B examples.
            names: Parameters to multiply; default: all that examples and queries have a gradient of.
            norms: Whether the examples' norms are wanted too.

        Raises:
            ValueError: If the way that was asked for is not possible.
        """
        if names is None:
            names = [name for name in examples.parts if name in self.gradients.parts]
        lines, bytes_left = [], self._bytes_left
        for name in dict.fromkeys(names):
            if name not in examples.parts:
                continue
            line = self._plan_line(name, examples, bytes_left, norms=norms)
            if line.keeps_dense:
                bytes_left -= self._bytes_taken(name)
            lines.append(line)
        return Plan(tuple(lines))

    def plan_positions(self, name: str, part: Factored, num_examples: int) -> PlanLine:
        """Plan the products of each position of one part of the examples' gradient.

        Raises:
            ValueError: If the way that was asked for is not possible.
        """
        examples = PerExampleGradients({name: [part]}, {name: self.gradients.shapes[name]}, num_examples)
        return self._plan_line(name, examples, self._bytes_left, by_position=True)

    def _plan_line(
        self,
        name: str,
        examples: PerExampleGradients,
        bytes_left: int,
        *,
        norms: bool = False,
        by_position: bool = False,
    ) -> PlanLine:
        rows, columns = examples.matrix_shape(name)
        query_parts = shape_of_parts(self.gradients.parts.get(name, ()))
        return plan_parameter(
            name,
            Shape(len(examples), len(self), rows, columns, shape_of_parts(examples.parts[name]), query_parts),
            self.options,
            norms=norms,
            fits=name in self._dense_QP or self._dense_bytes(examples.shapes[name]) <= bytes_left,
            examples_scaled=name in examples.scales,
            queries_scaled=name in self.gradients.scales,
            by_position=by_position,
        )

    def _dense_bytes(self, shape: torch.Size) -> int:
        return len(self) * math.prod(shape) * self.gradients.dtype.itemsize

    def _bytes_taken(self, name: str) -> int:
        """Count the further memory that keeping dense gradients takes: those that are dense anyway take none."""
        if name in self._dense_QP or any(isinstance(part, Dense) for part in self.gradients.parts[name]):
            return 0
        return self._dense_bytes(self.gradients.shapes[name])

    def kept(self, line: PlanLine) -> Tensor | None:
        """Form the dense gradients of one parameter once, ``[Q, P]``; None where the plan doesn't keep them."""
        if not line.keeps_dense:
            return None
        name = line.parameter
        if name not in self._dense_QP:
            spare = self._spare_QP.pop(name, None)
            if spare is not None and (spare.shape[0] != len(self) or spare.dtype != self.gradients.dtype):
                spare = None
            self._bytes_left -= self._bytes_taken(name)
            dense_QP = flat_rows(self.gradients.dense(name, out=None if spare is None else spare.flatten()))
            self._dense_QP[name] = dense_QP
            if "gram" not in line.ways:  # the factors are needed no more
                self.gradients.parts[name] = (Dense(dense_QP.view(len(self), *self.gradients.shapes[name])),)
                self.gradients.scales.pop(name, None)
        return self._dense_QP[name]

    def joined(self, names: Sequence[str]) -> Tensor:
        """Lay the gradients of several parameters side by side, ``[Q, sum of P]``, and keep them for the next call."""
        key = tuple(names)
        if key not in self._joined_QP:
            self._joined_QP[key] = torch.cat([flat_rows(self.gradients.dense(name)) for name in names], 1)
        return self._joined_QP[key]

    def memory(self, elements: int, like: Tensor) -> Tensor:
        """Lend memory for examples' dense gradients, again and again: fresh pages cost more than arithmetic."""
        if self._memory is None or len(self._memory) < elements or self._memory.dtype != like.dtype:
            self._memory = like.new_empty(elements)
        return self._memory

    def norms(self, names: Iterable[str]) -> Tensor:
        """Compute ``|grad_q|`` over the named parameters, ``[Q]``."""
        return self.gradients.square_norms(names).sqrt()
