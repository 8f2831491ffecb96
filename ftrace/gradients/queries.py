"""The query side of products: prepared once, multiplied with many batches of examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ftrace.gradients.costs import WAYS, Choice, Rates, Shape, Way, choices, measured_rates, shape_of_parts
from ftrace.gradients.parts import Dense, Part, flat_rows
from ftrace.gradients.per_example import PerExampleGradients

MEMORY_BUDGET = 2 * 2**30


class QueryGradients:
    """Gradients of Q queries, and how each parameter's products with them are taken.

    A parameter's products are taken in one of three ways: ``gram``, from both sides' factors; ``materialised``, from
    both sides' dense gradients; ``contraction``, of the examples' factors with the queries' dense gradients. The
    cheapest by the device's measured rates is chosen for each parameter, and results don't depend on it.

    Args:
        gradients: Gradients of the Q queries. They belong to this object from here on: where dense ones are kept,
            their factors are dropped.
        way: Take this way wherever there is a choice; default: the cheapest one.
        memory_budget: Bytes that products may take beyond the gradients' factors: seven eighths for the queries' dense
            gradients that are kept, an eighth for what is formed in passing. Results don't depend on it.
        batches: How many batches of examples will be multiplied with these queries, about.
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
        self.way = way
        self.memory_budget = memory_budget
        self.chunk_bytes = max(1, memory_budget // 8)
        self.batches = batches
        given = gradients.zeros()
        self.rates = rates or measured_rates(given.device, given.dtype)
        self._bytes_left = memory_budget - self.chunk_bytes
        self._dense_QP: dict[str, Tensor] = {}
        self._joined: dict[tuple[str, ...], Tensor] = {}
        self._choices: dict[tuple[str, Shape, bool, bool], Choice] = {}
        self._memory: Tensor | None = None
        self._spare_QP: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.gradients)

    def replace(self, gradients: PerExampleGradients) -> None:
        """Take the same queries' gradients at new weights: a refresh, in the memory of the last one."""
        self._spare_QP, self._dense_QP = self._dense_QP, {}
        self._joined.clear()
        self._bytes_left = self.memory_budget - self.chunk_bytes
        self.gradients = gradients

    def choose(self, examples: PerExampleGradients, name: str, *, norms: bool = False) -> Choice:
        """How the products of one parameter are taken with such examples.

        Raises:
            ValueError: If the way that was asked for is not possible.
        """
        return self._choose(examples.parts[name], examples, name, norms=norms, by_place=False)

    def choose_by_place(self, part: Part, name: str, num_examples: int) -> Choice:
        """How the products of each place of one part are taken: from its factors."""
        given = PerExampleGradients({name: [part]}, {name: self.gradients.shapes[name]}, num_examples)
        return self._choose((part,), given, name, norms=False, by_place=True)

    def _choose(
        self, parts: Sequence[Part], examples: PerExampleGradients, name: str, *, norms: bool, by_place: bool
    ) -> Choice:
        rows, columns = self.gradients.matrix_shape(name)
        query_parts = shape_of_parts(self.gradients.parts[name])
        shape = Shape(len(examples), len(self), rows, columns, shape_of_parts(parts), query_parts)
        key = name, shape, norms, by_place
        if key in self._choices:
            return self._choices[key]
        fits = name in self._dense_QP or self._dense_bytes(name) <= self._bytes_left
        found = choices(shape, self.rates, norms=norms, fits=fits, batches=self.batches, only=self.way)
        if name in examples.scales:  # there, factors alone are not the gradient
            found = [choice for choice in found if set(choice.ways) == {"materialised"}]
        if name in self.gradients.scales:
            found = [choice for choice in found if "gram" not in choice.ways]
        if by_place:
            found = [choice for choice in found if "materialised" not in choice.ways]
        if not found:
            raise ValueError(
                f"way={self.way!r} is not possible for {name!r}: one side's gradient is no plain product of factors, "
                "or places are to be told apart. Leave the way to be chosen"
            )
        self._choices[key] = found[0]
        return found[0]

    def _dense_bytes(self, name: str) -> int:
        return len(self) * math.prod(self.gradients.shapes[name]) * self.rates.element

    def keep_dense(self, name: str, choice: Choice) -> Tensor:
        """Gradients of one parameter, ``[Q, P]``, made once and kept within the memory budget."""
        if name not in self._dense_QP:
            spare = self._spare_QP.pop(name, None)
            if spare is not None and (spare.shape[0] != len(self) or spare.dtype != self.gradients.dtype):
                spare = None
            dense_QP = flat_rows(self.gradients.dense(name, out=None if spare is None else spare.flatten()))
            if not any(isinstance(part, Dense) for part in self.gradients.parts[name]):
                self._bytes_left -= dense_QP.nbytes
            self._dense_QP[name] = dense_QP
            if "gram" not in choice.ways:  # the factors are needed no more
                self.gradients.parts[name] = (Dense(dense_QP.view(len(self), *self.gradients.shapes[name])),)
                self.gradients.scales.pop(name, None)
        return self._dense_QP[name]

    def is_joinable(self, examples: PerExampleGradients, name: str) -> bool:
        """Whether both sides of a parameter are small and dense, so that its products can be taken with others'."""
        both = (*examples.parts[name], *self.gradients.parts.get(name, ()))
        scaled = name in examples.scales or name in self.gradients.scales
        return name in self.gradients.parts and not scaled and all(isinstance(part, Dense) for part in both)

    def joined(self, names: Sequence[str]) -> Tensor:
        """Gradients of several parameters side by side, ``[Q, sum of P]``, kept for the next call."""
        key = tuple(names)
        if key not in self._joined:
            self._joined[key] = torch.cat([flat_rows(self.gradients.dense(name)) for name in names], 1)
        return self._joined[key]

    def memory(self, elements: int, like: Tensor) -> Tensor:
        """Memory for the dense gradients of examples, used again and again: fresh pages cost more than arithmetic."""
        if self._memory is None or len(self._memory) < elements or self._memory.dtype != like.dtype:
            self._memory = like.new_empty(elements)
        return self._memory

    def norms(self, names: Iterable[str]) -> Tensor:
        """``|grad_q|`` over the named parameters, ``[Q]``."""
        return self.gradients.square_norms(names).sqrt()

    def plan(self, examples: PerExampleGradients, *, norms: bool = False) -> Plan:
        """How products with such examples are taken, parameter by parameter; print it to read it."""
        names = [name for name in examples.parts if name in self.gradients.parts]
        lines = []
        for name in names:
            kinds = shape_of_parts(examples.parts[name])
            if self.is_joinable(examples, name):
                lines.append(PlanLine(name, kinds, ("joined",), 0.0))
            else:
                choice = self.choose(examples, name, norms=norms)
                lines.append(PlanLine(name, kinds, choice.ways, choice.seconds))
        return Plan(tuple(lines))


@dataclass(frozen=True)
class PlanLine:
    """How one parameter's products are taken.

    Args:
        parameter: Its name.
        parts: Kind and places of each part of the examples' gradient.
        ways: For each part, one of :data:`WAYS`; ``joined``: dense on both sides, multiplied together with others.
        seconds: The estimate for one batch of examples.
    """

    parameter: str
    parts: tuple[tuple[str, int], ...]
    ways: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How the products of a batch are taken."""

    lines: tuple[PlanLine, ...]

    def __str__(self) -> str:
        width = max((len(line.parameter) for line in self.lines), default=0)
        text = []
        for line in self.lines:
            parts = " + ".join(f"{kind} of {places}" if kind != "dense" else kind for kind, places in line.parts)
            cost = f"{1e3 * line.seconds:9.3f} ms" if line.seconds else ""
            text.append(f"{line.parameter:{width}}  {parts:24}  {' + '.join(line.ways):28}{cost}".rstrip())
        return "\n".join(text)
