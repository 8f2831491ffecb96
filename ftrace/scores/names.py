"""Names of examples and queries: from ids to what a person calls them, and back."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from ftrace.scores.ids import as_ids, ascending_order, places_of, stable_id
from ftrace.scores.texts import Texts

_NEAREST = 3
_FEW = 10_000


class Names:
    """The ids of a store's examples, or of its queries, with the names of those that have one.

    Args:
        ids: int64 ``[N]``, each once.
        names: The names that the ids were made from, ``[N]``; None if there are none.
        texts: Their texts, whose column ``name`` stands in for ``names``; None if they aren't known.

    Example:
        >>> names = Names(np.array([stable_id("a"), stable_id("b")]), np.array(["a", "b"]))
        >>> names.of([stable_id("b"), 7])
        ['b', '7']
        >>> names.place("a")
        0
    """

    def __init__(self, ids: np.ndarray, names: np.ndarray | None = None, texts: Texts | None = None) -> None:
        self.ids = ids
        self.names = names
        self._texts = texts if texts is not None and "name" in texts.columns else None

    @property
    def are_known(self) -> bool:
        """Whether any has a name."""
        return self.names is not None or self._texts is not None

    def of(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the names of some ids, in their order; the id itself as text where there is no name."""
        wanted = as_ids(ids, "ids") if len(ids) else np.zeros(0, np.int64)
        if self.names is not None:
            places = places_of(wanted, self.ids, ascending_order(self.ids))
            known = iter(self.names[places[places >= 0]].tolist())
            names = [next(known) if place >= 0 else None for place in places.tolist()]
        elif self._texts is None:
            names = [None] * len(wanted)
        elif len(wanted) <= _FEW:
            names = [None if row is None else row["name"] for row in self._texts.rows(wanted)]
        else:
            column = [*self._texts.column("name").to_pylist(), None]
            names = [column[place] for place in self._texts.places(wanted).tolist()]  # -1 is the last one, None
        return [str(number) if name is None else str(name) for name, number in zip(names, wanted.tolist(), strict=True)]

    def labels(self) -> np.ndarray:
        """Return what tables are labelled with, ``[N]``: names if the ids were made from names, the ids otherwise."""
        if self.names is not None:
            return self.names
        if self._texts is None or not len(self.ids):
            return self.ids
        names = self._texts.column("name")
        places = places_of(self._texts.ids, self.ids, ascending_order(self.ids))
        named = np.flatnonzero((places >= 0) & names.is_valid().to_numpy(zero_copy_only=False))
        if not len(named) or stable_id(str(names[named[0]])) != self._texts.ids[named[0]]:
            return self.ids  # numbers of their own, beside which the names are notes
        labels = np.full(len(self.ids), None, dtype=object)
        is_nameless = np.ones(len(self.ids), bool)
        labels[places[named]], is_nameless[places[named]] = names.to_numpy()[named], False
        labels[is_nameless] = [str(number) for number in self.ids[is_nameless].tolist()]
        return labels

    def place(self, given: int | str) -> int | None:
        """Find the position of an id or a name in ``ids``; None if it isn't there."""
        if not isinstance(given, str):
            return _first(self.ids == given)
        place = _first(self.ids == stable_id(given))
        if place is None and self.names is not None:
            place = _first(self.names == given)
        if place is None and self._texts is not None:
            number = self._by_name().get(given)
            place = None if number is None else _first(self.ids == number)
        return place

    def nearest(self, given: int | str) -> str:
        """Say what there is in place of an id or a name that isn't there."""
        if not len(self.ids):
            return "none"
        if isinstance(given, str) and self.are_known:
            names = list(self._by_name()) if self.names is None else [str(name) for name in self.names]
            near = difflib.get_close_matches(given, names, _NEAREST, cutoff=0.4)
            if near:
                return f"the nearest {near}"
        if isinstance(given, str) or self.names is not None:
            first = self.ids[:_NEAREST]
            return f"the first {self.of(first) if self.are_known else first.tolist()}"
        distances = np.abs(self.ids.astype(np.float64) - float(given))
        return f"the nearest {np.sort(self.ids[np.argsort(distances, kind='stable')[:_NEAREST]]).tolist()}"

    def _by_name(self) -> dict[str, int]:
        """Return the ids by the names that the texts say."""
        assert self._texts is not None
        names = self._texts.column("name").to_pylist()
        pairs = zip(names, self._texts.ids.tolist(), strict=True)
        return {str(name): number for name, number in pairs if name is not None}


def _first(condition: np.ndarray) -> int | None:
    places = np.flatnonzero(condition)
    return int(places[0]) if len(places) else None
