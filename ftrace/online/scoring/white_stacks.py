"""Whitening matrices and whitened query gradients of many parameters, laid out so that they are multiplied at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from ftrace.gradients import STACKED, stacked, stacked_products_of_rows


@dataclass(frozen=True)
class WhiteStack:
    """The whitening of some parameters.

    Args:
        names: The parameters.
        matrices: ``[P, D, D]``, by which their gradients are whitened; None to leave them as they are.
        queries: ``[P, Q, D]``, the whitened query gradients; zeros where the queries have none.
        queried: The parameters that the queries have a gradient of.
    """

    names: tuple[str, ...]
    matrices: Tensor | None = None
    queries: Tensor | None = None
    queried: frozenset[str] = frozenset()

    def white(self, rows: Mapping[str, Tensor]) -> tuple[Sequence[str], Tensor, Tensor | None]:
        """Whiten gradients.

        Args:
            rows: By parameter, ``[B, D]``: of any of :attr:`names`, at least one.

        Returns:
            Names, whitened gradients ``[n, B, D]``, and query gradients ``[n, Q, D]``, in the same order. All names
            are taken, with zeros for those without gradient, unless these are most of them.
        """
        taken, queries, turned = self.names, self.queries, self._turned
        if 2 * len(rows) < len(self.names):
            places = [place for place, name in enumerate(self.names) if name in rows]
            taken = tuple(self.names[place] for place in places)
            queries, turned = (None if of is None else of[places] for of in (queries, turned))
        phi = stacked(rows, taken)
        return taken, phi if turned is None else stacked_products_of_rows(phi, turned.to(phi)), queries

    @cached_property
    def _turned(self) -> Tensor | None:
        """The matrices, transposed."""
        return None if self.matrices is None else self.matrices.transpose(1, 2).contiguous()


def in_stacks(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Divide names into stacks whose temporaries stay small."""
    for start in range(0, len(names), STACKED):
        yield tuple(names[start : start + STACKED])


def with_queries(stacks: Sequence[WhiteStack], get: Callable[[WhiteStack], Mapping[str, Tensor]]) -> list[WhiteStack]:
    """Put whitened query gradients into stacks.

    Args:
        get: Returns those of a stack, by parameter, ``[Q, D]``.
    """
    filled = []
    for stack in stacks:
        rows = get(stack)
        queries = stacked(rows, stack.names) if rows else None
        filled.append(WhiteStack(stack.names, stack.matrices, queries, frozenset(rows)))
    return filled
