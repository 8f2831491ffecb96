"""The list of a report's queries, by which a reader searches, sorts and filters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ftrace.report.explorer.content.facts import relation_of_fact
from ftrace.report.explorer.format import QueryChunk, QueryList

_LONGEST = 300
_WHEN_LEARNED = "when learned"
_ALWAYS = ("relation", "query_set", _WHEN_LEARNED)  # facets even if each query has a value of its own
_NEVER = ("fact",)  # of which hardly two queries share one
_MOST_VALUES = 50


class QueryListMaker:
    """The list, to which queries are added one by one."""

    def __init__(self) -> None:
        self._chunks: list[dict] = []
        self._precisions: list[Sequence[float | None]] = []
        self._best_precisions: list[float | None] = []
        self._disagreements: list[float | None] = []
        self._properties: defaultdict[str, dict[int, str]] = defaultdict(dict)

    def add(
        self,
        chunk: QueryChunk,
        precisions: Sequence[float | None],
        best_precision: float | None,
        disagreement: float | None,
        fact: str | None,
    ) -> None:
        """Add a query.

        Args:
            chunk: Its chunk.
            precisions: P@10 of each method.
            best_precision: The highest that any method could reach.
            disagreement: Of the methods.
            fact: The key of its fact.
        """
        position = len(self._chunks)
        said, loss, answered = chunk["said"], chunk["loss"], chunk["answered"]
        losses = [] if loss is None else loss["values"]
        self._chunks.append(
            {
                "ids": chunk["id"],
                "names": chunk["name"],
                "prompts": _cut(chunk["prompt"]),
                "answers": _cut(chunk["answer"]),
                "said": _cut(None if said is None else said["text"]),
                "said_right": said and said["right"],
                "first_losses": losses[0] if losses else None,
                "last_losses": losses[-1] if losses else None,
                "learned_steps": answered and answered["step"],
                "states": answered and answered["state"],
            }
        )
        self._precisions.append(precisions)
        self._best_precisions.append(best_precision)
        self._disagreements.append(disagreement)
        for name, value in chunk["properties"]:
            self._properties[name][position] = value
        if answered is not None:
            self._properties[_WHEN_LEARNED][position] = answered["state"]
        relation = relation_of_fact(fact)
        if relation is not None:
            self._properties["relation"].setdefault(position, relation)

    def finish(self) -> QueryList:
        """Return the list."""
        columns = {name: [chunk[name] for chunk in self._chunks] for name in _COLUMNS}
        precisions = [list(of_method) for of_method in zip(*self._precisions, strict=True)]
        return {
            **columns,  # type: ignore[typeddict-item]
            "precisions": precisions,
            "best_precisions": self._best_precisions,
            "disagreements": self._disagreements,
            "facets": self._facets(),
        }

    def _facets(self) -> Mapping[str, Sequence[str | None]]:
        """Return the properties by which queries can be told into groups."""
        count = len(self._chunks)
        facets = {}
        for name, by_position in self._properties.items():
            different = len(set(by_position.values()))
            is_grouping = different <= min(_MOST_VALUES, count / 2) or name in _ALWAYS
            if different > 1 and is_grouping and name not in _NEVER:
                facets[name] = [by_position.get(position) for position in range(count)]
        return facets


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:_LONGEST]


_COLUMNS = (
    "ids", "names", "prompts", "answers", "said", "said_right", "first_losses", "last_losses", "learned_steps",
    "states",
)  # fmt: skip
