"""The texts of all examples that a report lists, each read once and cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ftrace.views import Row, Source
from ftrace.views.joining import example_rows, name_of, text_of

_AT_ONCE = 10_000


class Text(NamedTuple):
    """A text, perhaps cut.

    Args:
        text: What is left of it; None if it isn't known.
        cut: Number of characters that were left out at its end.
    """

    text: str | None
    cut: int = 0

    @classmethod
    def of(cls, text: str | None, longest: int) -> Text:
        """Cut a text to a number of characters."""
        return cls(None) if text is None else cls(text[:longest], max(0, len(text) - longest))


def shortened(text: str | None, longest: int) -> str | None:
    """Cut what stands beside texts, such as an answer, and say at its end how much was left out.

    Example:
        >>> shortened("Stockholm", 5)
        'Stock… +4'
    """
    return text if text is None or len(text) <= longest else f"{text[:longest]}… +{len(text) - longest:,}"


class ListedExample(NamedTuple):
    """What is known of an example.

    Args:
        name: Its name; None if it is called by its id.
        text: What it says.
        answer: What it teaches; None if that isn't known.
        row: What else tells whether it states a fact, as in the texts.
    """

    name: str | None
    text: Text
    answer: str | None
    row: Row


class CorpusTexts:
    """The texts of examples by id.

    Args:
        sources: Sources of scores, of which the first one that has a text counts.
        ids: The examples, ascending, each once.
        longest: Number of characters after which texts are cut.
    """

    def __init__(self, sources: Sequence[Source], ids: np.ndarray, longest: int) -> None:
        self._examples: dict[int, ListedExample] = {}
        self.num_cut = 0
        for start in range(0, len(ids), _AT_ONCE):
            for example, row in example_rows(sources, ids[start : start + _AT_ONCE].tolist()).items():
                name = name_of(example, row, (source.example_name(example) for source in sources))
                text = Text.of(text_of(row, "text"), longest)
                answer = shortened(text_of(row, "answer"), longest)
                facts = {"facts": row["facts"]} if row.get("facts") is not None else {}
                self._examples[example] = ListedExample(name, text, answer, facts)
                self.num_cut += text.cut > 0

    def __getitem__(self, example_id: int) -> ListedExample:
        return self._examples[example_id]
