"""The content of a report, made of sources of scores: a stream of chunks, as ``app/format.d.ts`` says what is in each.

Chunks are made one by one, so that texts and lists of ids are in memory, and never all chunks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from ftrace.report.explorer.content.additions import Additions
from ftrace.report.explorer.content.corpus_texts import CorpusTexts
from ftrace.report.explorer.content.examples import EXAMPLES_OF_A_CHUNK, Examples
from ftrace.report.explorer.content.facts import precision_of
from ftrace.report.explorer.content.listings import disagreement
from ftrace.report.explorer.content.queries import Queries
from ftrace.report.explorer.content.query_list import QueryListMaker
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.report.explorer.content.redaction import redacted_page, redacted_query, redacted_run
from ftrace.report.explorer.format import (
    FORMAT,
    VERSION,
    ExampleChunk,
    Head,
    Method,
    QueryChunk,
    QueryList,
)
from ftrace.shown_text import counted
from ftrace.views import Source, StoreSource, title_of
from ftrace.views.joining import text_of

NATS = ("update",)  # `dot` is in nats only where the optimizer is plain SGD
_SAMPLE = 12  # chunks of each sort from which the size is estimated


@dataclass(frozen=True)
class ContentSettings:
    """What a report holds.

    Args:
        longest_text: Number of characters after which texts are cut.
        is_redacted: Whether texts are left out.
    """

    longest_text: int = 4000
    is_redacted: bool = False


class Content:
    """The content of a report.

    Args:
        ranked: The queries, ranked by all methods.
        title: The title of the report.
        settings: What it holds.
        additions: Finds what it has beside scores and texts, which is asked for when it is needed; default: nothing.

    Attributes:
        title: As given.
    """

    def __init__(
        self,
        ranked: RankedQueries,
        title: str,
        settings: ContentSettings,
        additions: Callable[[], Additions] = Additions,
    ) -> None:
        self.title = title
        self._ranked, self._settings, self._find_additions = ranked, settings, additions
        self._sources, self._listings = ranked.sources, ranked.listings
        self._ids = ranked.example_ids
        self._texts = CorpusTexts(self._sources, self._ids, settings.longest_text)
        self._queries = Queries(self._sources, ranked.rows, self._texts, settings.longest_text)
        self._examples = Examples(self._sources, self._listings, self._ids, self._texts)

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return len(self._listings)

    @property
    def num_examples(self) -> int:
        """Number of examples that are listed for any query."""
        return len(self._ids)

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return len(self._listings) + -(-len(self._ids) // EXAMPLES_OF_A_CHUNK) + 1

    @cached_property
    def additions(self) -> Additions:
        """What it has beside scores and texts; finding it may take minutes."""
        return self._find_additions()

    def head(self, places: Iterable[int]) -> Head:
        """Make the head alone.

        Args:
            places: The positions of all queries, which are taken one by one.
        """
        query_list = QueryListMaker()
        for place in places:
            self._add(query_list, place, self.query(place))
        return self._head(query_list.finish(), self.additions)

    def chunks(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Make the chunks: of queries, of examples, and at the end the head."""
        query_list = QueryListMaker()
        for place in range(len(self._listings)):
            chunk = self.query(place)
            self._add(query_list, place, chunk)
            yield f"query-{place}", chunk
        for number, pages in enumerate(self._examples.chunks()):
            yield f"example-{number}", self._example_chunk(pages)
        yield "head", self._head(query_list.finish(), self.additions)

    def estimated_size(self, size_of: Callable[[str, Mapping[str, Any]], int]) -> int:
        """Estimate the size of all chunks, without additions, from some that are drawn evenly.

        Args:
            size_of: Returns the size of a chunk, of its name and content.
        """
        nothing, query_list, total = Additions(), QueryListMaker(), 0.0
        places = _evenly(len(self._listings), _SAMPLE)
        for place in places:
            chunk = self._query(place, nothing)
            self._add(query_list, place, chunk)
            total += size_of(f"query-{place}", chunk) * len(self._listings) / len(places)
        num_chunks = self.num_chunks - 1 - len(self._listings)
        numbers = _evenly(num_chunks, _SAMPLE)
        for number in numbers:
            pages = self._example_chunk(self._examples.chunk(number))
            total += size_of(f"example-{number}", pages) * num_chunks / len(numbers)
        without = size_of("head", self._head(QueryListMaker().finish(), nothing))
        queries = size_of("head", self._head(query_list.finish(), nothing)) - without
        return round(total + without + queries * len(self._listings) / max(1, len(places)))

    def query(self, place: int) -> QueryChunk:
        """Make the chunk of a query.

        Args:
            place: Its position among the queries.
        """
        return self._query(place, self.additions)

    def _query(self, place: int, additions: Additions) -> QueryChunk:
        listing = self._listings[place]
        chunk = self._queries.chunk(listing, additions)
        return redacted_query(chunk, self._ranked.rows[listing.query_id]) if self._settings.is_redacted else chunk

    def _add(self, query_list: QueryListMaker, place: int, chunk: QueryChunk) -> None:
        listing = self._listings[place]
        states_fact = [example["states_fact"] for example in chunk["examples"]]
        precisions = [None if method is None else precision_of(method, states_fact) for method in listing.methods]
        fact = None if self._settings.is_redacted else text_of(self._ranked.rows[listing.query_id], "fact")
        best = [method.best_precision for method in listing.methods if method is not None]
        best_precision = max((value for value in best if value is not None), default=None)
        query_list.add(chunk, precisions, best_precision, disagreement(listing), fact)

    def _example_chunk(self, pages: Iterable[Any]) -> ExampleChunk:
        return {"examples": [redacted_page(page) if self._settings.is_redacted else page for page in pages]}

    def _head(self, queries: QueryList, additions: Additions) -> Head:
        return {
            "format": FORMAT,
            "version": VERSION,
            "made_by": f"ftrace {version('ftrace')}",
            "title": self.title,
            "fingerprint": self._fingerprint(),
            "is_redacted": self._settings.is_redacted,
            "limits": list(self._limits(additions)),
            "methods": [self._method(place) for place in range(len(self._sources))],
            "queries": queries,
            "example_chunks": self._examples.first_ids,
            "run": redacted_run(additions.run) if self._settings.is_redacted else additions.run,
        }

    def _method(self, place: int) -> Method:
        source = self._sources[place]
        opponents = [listing.methods[place] for listing in self._listings]
        return {
            "title": title_of(source.name, source.kind),
            "kind": source.kind,
            "unit": "nats" if source.kind in NATS else "",
            "doubts": list(source.doubts()),
            "is_complete": source.is_complete,
            "num_examples": _num_examples(source),
            "has_opponents": any(method is not None and method.opponents is not None for method in opponents),
            "axes": source.store.breakdown_of(source.kind) if isinstance(source, StoreSource) else {},
        }

    def _limits(self, additions: Additions) -> Iterator[str]:
        settings, opponents = self._settings, self._ranked.opponents
        strongest = counted(self._ranked.k, "strongest proponent")
        if opponents:
            yield f"Of each query, each method's {strongest} and {opponents:,} strongest opponents are listed."
        else:
            yield f"Of each query, each method's {strongest} are listed, and no opponents."
        yield from additions.limits
        for source in self._sources:
            if not source.is_complete:
                yield (
                    f"{title_of(source.name, source.kind)}: only the strongest examples of each query are known, so "
                    "ranks are those among them."
                )
        if settings.is_redacted:
            yield "Texts, answers and names were left out: examples and queries are called by their ids."
        elif self._texts.num_cut:
            texts = counted(self._texts.num_cut, "text was", "texts were")
            yield f"{texts} cut at {settings.longest_text:,} characters."

    def _fingerprint(self) -> str:
        """Hash what is listed, and for which queries."""
        digest = hashlib.sha256(json.dumps([title_of(source.name, source.kind) for source in self._sources]).encode())
        for listing in self._listings:
            digest.update(listing.query_id.to_bytes(8, "little", signed=True))
            digest.update(listing.ids.tobytes())
            for method in listing.methods:
                digest.update(b"-" if method is None else method.places.scores.tobytes())
        return digest.hexdigest()[:16]


def _num_examples(source: Source) -> int | None:
    if isinstance(source, StoreSource):
        return len(source.store.example_ids)
    ranking = next(filter(None, map(source.ranking, source.query_ids)), None) if source.is_complete else None
    return None if ranking is None else len(ranking)


def _evenly(count: int, sample: int) -> list[int]:
    """Choose some of so many places, evenly and each once."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, sample)).tolist()}) if count else []
