"""Products of examples' gradients that are taken inside the backward pass, while the gradients are still at hand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from ftrace.gradients import PerExampleGradients, QueryGradients, inner_products, inner_products_and_square_norms
from ftrace.online.scoring.contributions import Share, Shares


class EarlyProducts:
    """The products of one backward pass so far, without the factor of a contribution.

    Args:
        queries: What gradients are multiplied with.
        shares: By optimizer, the names of its parameters by share.
        norms: Whether norms are needed, too.
        also: Called with all gradients before they are multiplied.

    Attributes:
        names: The parameters so far.
        products: By optimizer and share, ``[B, Q]``.
        square_norms: By optimizer, the examples' square norms over its parameters, ``[B]``; empty unless needed.
    """

    def __init__(
        self,
        queries: QueryGradients,
        shares: Mapping[int, Shares],
        *,
        norms: bool,
        also: Callable[[PerExampleGradients], None],
    ) -> None:
        self._queries = queries
        self._norms = norms
        self._also = also
        self._places: dict[str, list[tuple[int, Share]]] = {}  # several if optimizers share a parameter
        for optimizer, of_optimizer in shares.items():
            for share, names in of_optimizer.items():
                for name in names:
                    self._places.setdefault(name, []).append((optimizer, share))
        self.names: set[str] = set()
        self.products: dict[int, dict[Share, Tensor]] = {}
        self.square_norms: dict[int, Tensor] = {}

    def take(self, gradients: PerExampleGradients) -> None:
        """Multiply the gradients of some parameters, which aren't needed afterwards."""
        self._also(gradients)
        self.names.update(gradients.parts)
        by_place: dict[tuple[int, Share], list[str]] = {}
        for name in gradients.parts:
            for place in self._places.get(name, ()):
                by_place.setdefault(place, []).append(name)
        for (optimizer, share), names in by_place.items():
            products = self._multiply(optimizer, gradients, names)
            of_optimizer = self.products.setdefault(optimizer, {})
            of_optimizer[share] = of_optimizer[share] + products if share in of_optimizer else products

    def _multiply(self, optimizer: int, gradients: PerExampleGradients, names: Collection[str]) -> Tensor:
        if not self._norms:
            return inner_products(gradients, self._queries, names)
        products, squares = inner_products_and_square_norms(gradients, self._queries, names)
        known = self.square_norms.get(optimizer)
        self.square_norms[optimizer] = squares if known is None else known + squares
        return products
