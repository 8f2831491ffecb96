"""The chunk of one query: what was asked and answered, and who taught it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftrace.report.explorer.content.additions import Additions
from ftrace.report.explorer.content.corpus_texts import CorpusTexts, ListedExample, Text, shortened
from ftrace.report.explorer.content.facts import kind_of_example
from ftrace.report.explorer.content.listings import Listing, lists_of, places_in
from ftrace.report.explorer.content.losses import Losses, answered_in_report, warnings_of_loss
from ftrace.report.explorer.content.parts import Breakdown
from ftrace.report.explorer.format import Example, QueryChunk
from ftrace.report.explorer.format import Said as SaidInReport
from ftrace.report.explorer.short_numbers import finite
from ftrace.shown_text import counted
from ftrace.views import Row, Said, Source, StoreSource, title_of
from ftrace.views.duplicates import fold_duplicates
from ftrace.views.joining import GroundTruth, name_of, other_answers, query_words, said_of, text_of
from ftrace.views.words import SampledWords, shared_spans

_LONGEST_PROPERTY = 300
_SHOWN_ELSEWHERE = ("query_id", "name", "text", "answer", "answers", "said", "proponent_ids")


class Queries:
    """Chunks of queries.

    Args:
        sources: Sources of scores, the methods.
        rows: What the texts say of each query, by id.
        texts: Texts of all examples that are listed.
        longest: Number of characters after which texts are cut.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        rows: Mapping[int, Row],
        texts: CorpusTexts,
        longest: int,
    ) -> None:
        self._sources, self._rows, self._texts, self._longest = sources, rows, texts, longest
        self._losses = Losses(sources)
        self._common = SampledWords(next(filter(None, (source.sample_texts() for source in sources)), []))
        self._breakdowns = {
            method: Breakdown(source, method)
            for method, source in enumerate(sources)
            if isinstance(source, StoreSource)
        }

    def chunk(self, listing: Listing, additions: Additions) -> QueryChunk:
        """Make the chunk of a query.

        Args:
            listing: What the methods list for it.
            additions: What it has beside scores and texts.
        """
        query_id, row = listing.query_id, self._rows[listing.query_id]
        prompt = Text.of(text_of(row, "text"), self._longest)
        said = additions.said.get(query_id) or said_of(row)
        loss = self._losses.of(query_id)
        parts = [
            of_axis
            for method, breakdown in self._breakdowns.items()
            if (of_method := listing.methods[method]) is not None
            for of_axis in breakdown.of(query_id, listing.ids, of_method)
        ]
        chunk: QueryChunk = {
            "id": str(query_id),
            "name": name_of(query_id, row, (source.query_name(query_id) for source in self._sources)),
            "prompt": prompt.text,
            "cut": prompt.cut,
            "answer": shortened(text_of(row, "answer"), self._longest),
            "accepted": [shortened(answer, self._longest) or "" for answer in other_answers(row)],
            "said": None if said is None else _said_in_report(said, self._longest),
            "properties": list(properties_of(row)),
            "loss": None if loss is None else loss[1],
            "answered": answered_in_report(None if loss is None else loss[0]),
            "warnings": [
                *warnings_of_answer(said),
                *([] if loss is None else warnings_of_loss(loss[0])),
                *self._warnings_of_scores(listing),
            ],
            "examples": self._examples(listing, row),
            "lists": [None if method is None else lists_of(method) for method in listing.methods],
            "parts": parts,
            "tokens": None,
            "causal": None,
        }
        chunk["tokens"] = None if additions.tokens is None else additions.tokens(chunk)
        chunk["causal"] = None if additions.causal is None else additions.causal(chunk)
        return chunk

    def _examples(self, listing: Listing, row: Row) -> list[Example]:
        ids = listing.ids.tolist()
        examples = [self._texts[example] for example in ids]
        truth = GroundTruth(self._sources, listing.query_id, row)
        words = query_words(row)
        words -= self._common.common(words)
        places = zip(*(places_in(method, len(ids)) for method in listing.methods), strict=True)
        first_alike = list(range(len(ids)))
        for first, *others in fold_duplicates([example.text.text for example in examples]):
            for other in others:
                first_alike[other] = first
        return [
            _example(example_id, example, truth, words, list(of_example), alike)
            for example_id, example, of_example, alike in zip(ids, examples, places, first_alike, strict=True)
        ]

    def _warnings_of_scores(self, listing: Listing) -> Iterator[str]:
        for source, method in zip(self._sources, listing.methods, strict=True):
            title = title_of(source.name, source.kind)
            if method is None:
                yield f"{title} has no scores for this query."
                continue
            if not len(method.proponents):
                yield f"{title} ranks no example for this query."
            elif not method.strongest:
                yield f"{title}: all scores are 0."
            if isinstance(source, StoreSource) and not source.store.has_candidates and method.counts is not None:
                strange = len(source.store.example_ids) - method.counts.candidates
                if strange:
                    yield f"{title}: {counted(strange, 'score')} left out that are no finite numbers."


def warnings_of_answer(said: Said | None) -> Iterator[str]:
    """Say that a query was not answered right."""
    if said is not None and said.right is False:
        yield (
            "The model's answer is wrong. This page lists who taught the right one, and who opposed it; who taught the "
            "wrong one is probably among the opponents. `ftrace ask` lists who taught any answer."
        )


def _example(
    example_id: int, example: ListedExample, truth: GroundTruth, words: set[str], places: list[Any], alike: int
) -> Example:
    text, cut = example.text
    states_fact = truth.states_fact(example_id, example.row)
    return {
        "id": str(example_id),
        "name": example.name,
        "text": text,
        "cut": cut,
        "answer": example.answer,
        "states_fact": states_fact,
        "kind": kind_of_example(truth, example, states_fact),
        "shared": in_utf16(text, shared_spans(text, words)) if text and words else [],
        "places": places,
        "alike": alike,
    }


def in_utf16(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Count the places of spans in units of UTF-16, as JavaScript does.

    Example:
        >>> in_utf16("😀 Oslo", [(2, 6)])
        [(3, 7)]
    """
    if not spans or text.isascii() or max(text) < "\U00010000":
        return list(spans)
    wide = np.cumsum([0, *(character >= "\U00010000" for character in text)])
    return [(int(begin + wide[begin]), int(end + wide[end])) for begin, end in spans]


def properties_of(row: Row) -> Iterator[tuple[str, str]]:
    """Return what else the texts say of a query: names and values."""
    for name, value in row.items():
        if name not in _SHOWN_ELSEWHERE and value is not None:
            yield name, shortened(_value_text(value), _LONGEST_PROPERTY) or ""


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(_value_text, value)) if isinstance(value, list | tuple) else str(value)


def _said_in_report(said: Said, longest: int) -> SaidInReport:
    return {
        "text": shortened(said.text, longest),
        "probability": finite(said.probability),
        "right": said.right,
        "snapshot": said.snapshot,
    }
