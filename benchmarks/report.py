"""How long a report takes to make, how large it is and how much memory it takes, by the size of what it is of.

    python benchmarks/report.py
    python benchmarks/report.py --examples 5000 --queries 50 --out report

Texts and scores are drawn: each query has examples that state its fact, which all methods find more or less; some
examples score high for whatever is asked, as in real runs. Scores are written query by query, so that memory doesn't
grow with their number.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from ftrace.report.explorer.chunks import encode_chunk, island
from ftrace.report.explorer.content import Content, ContentSettings
from ftrace.report.explorer.ranked_queries import RankedQueries
from ftrace.report.explorer.writing import write_report
from ftrace.scores import EXAMPLE_ID, QUERY_ID, ScoreStore, ScoreWriter, Texts
from ftrace.views import StoreSource

METHODS = ("learning", "update", "dot", "bm25")
WORDS = 20_000
SYLLABLES = ("ba", "den", "fu", "gor", "hil", "jo", "kra", "lum", "mi", "ner", "pol", "ra", "su", "tev", "wo", "zin")
STATING = 40  # examples of each fact
NOISE = (0.4, 0.6, 1.0, 0.5)  # of each method, where stating the fact counts 2


def write_stores(folder: Path, examples: int, queries: int, words: int, seed: int) -> list[ScoreStore]:
    """Write a store for each method, with texts of about ``words`` words in the first one."""
    generator = np.random.default_rng(seed)
    stating = generator.integers(0, examples, (queries, STATING))
    popular = generator.lognormal(0, 0.4, examples)
    texts = {
        "examples": Texts.of(list(_examples(generator, stating, examples, words)), EXAMPLE_ID),
        "queries": Texts.of(list(_queries(generator, stating)), QUERY_ID),
    }
    stores: list[ScoreStore] = []
    for method, noise in zip(METHODS, NOISE, strict=True):
        with ScoreWriter(folder / method, np.arange(examples), np.arange(queries), [method]) as writer:
            for query in range(queries):
                scores = popular * generator.normal(0, noise, examples)
                scores[stating[query]] += generator.lognormal(0.7, noise, STATING)
                scores = (
                    np.maximum(scores, 0).round(1) if method == "bm25" else scores
                )  # which ties, and has no opponents
                writer.put(method, scores, columns=query)
            stores.append(writer.finish({"method": method}, **({} if stores else texts)))
    return stores


def _examples(
    generator: np.random.Generator, stating: np.ndarray, examples: int, words: int
) -> Iterator[dict[str, Any]]:
    facts: dict[int, list[str]] = {}
    for query, of_query in enumerate(stating.tolist()):
        for example in of_query:
            facts.setdefault(example, []).append(_fact(query))
    for example in range(examples):
        text = _text(generator, int(generator.integers(words // 2, 3 * words // 2 + 1)))
        yield {"example_id": example, "text": text, "answer": text.split()[-1], "facts": facts.get(example, [])}


def _queries(generator: np.random.Generator, stating: np.ndarray) -> Iterator[dict[str, Any]]:
    for query, of_query in enumerate(stating):
        text, answer = _text(generator, 10), _text(generator, 2)
        proponents = np.unique(of_query).tolist()
        yield {"query_id": query, "text": text, "answer": answer, "fact": _fact(query), "proponent_ids": proponents}


def _text(generator: np.random.Generator, words: int) -> str:
    """Draw words, some of which are as common as words of a language are."""
    drawn = (WORDS ** generator.random(words)).astype(int)
    return " ".join(_word(word) for word in drawn.tolist())


def _word(number: int) -> str:
    syllables = (
        "ba",
        "den",
        "fu",
        "gor",
        "hil",
        "jo",
        "kra",
        "lum",
        "mi",
        "ner",
        "pol",
        "ra",
        "su",
        "tev",
        "wo",
        "zin",
    )
    return "".join(syllables[number >> 4 * place & 15] for place in range(1 + number.bit_length() // 4))


def _fact(query: int) -> str:
    return f"r{query % 20}-e{query}-e{query * 7 % 1009}"


class _Clock:
    """Seconds, by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def spent_on(self, what: str) -> None:
        """Book the time since the last call."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0) + now - self._last
        self._last = now

    def chunks(self, chunks: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Book the time in which chunks are made, and that in which they are written."""
        for name, chunk in chunks:
            self.spent_on(f"making {name.partition('-')[0]}")
            yield name, chunk
            self.spent_on(f"encoding {name.partition('-')[0]}")


def main(
    examples: int = 100_000,
    queries: int = 1_000,
    words: int = 35,
    k: int = 100,
    opponents: int = 20,
    seed: int = 0,
    stores: str | None = None,
    out: str | None = None,
) -> None:
    """Make a report, and print what it took.

    Args:
        examples: Number of examples.
        queries: Number of queries.
        words: Words of a text, on average.
        k: Proponents of each method.
        opponents: Opponents of each method.
        seed: Of texts and scores.
        stores: Where the stores are kept, or were kept before; default: a temporary folder.
        out: Where the report is kept; default: a temporary folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(stores or temporary)
        clock = _Clock()
        if not (folder / METHODS[-1]).is_dir():
            write_stores(folder, examples, queries, words, seed)
        clock.spent_on("drawing texts and scores")
        sources = [StoreSource(ScoreStore.open(folder / method)) for method in METHODS]
        ranked = RankedQueries(sources, sources[0].query_ids, k, opponents)
        clock.spent_on("ranking")
        content = Content(ranked, "benchmark", ContentSettings())
        clock.spent_on("reading texts")
        sizes: dict[str, int] = {}

        def size_of(name: str, chunk: Mapping[str, Any]) -> int:
            sizes[name] = len(island(name, encode_chunk(chunk)))
            return sizes[name]

        estimate = content.estimated_size(size_of)
        clock.spent_on("estimating the size")
        written = write_report(
            Path(out or Path(temporary) / "report"), clock.chunks(content.chunks()), title="benchmark"
        )
        clock.spent_on("putting it in its place")
        whole = written if written.name != "index.html" else written.parent
        size = sum(file.stat().st_size for file in ([whole] if whole.is_file() else whole.rglob("*")) if file.is_file())
        of_queries = [bytes_ for name, bytes_ in sizes.items() if name.startswith("query")]
    table = Table("", "seconds", title=f"{examples:,} examples x {queries:,} queries x {len(METHODS)} methods")
    for what, seconds in clock.seconds.items():
        table.add_row(what, f"{seconds:.1f}")
    spent = sum(clock.seconds.values()) - clock.seconds["drawing texts and scores"]
    table.add_row("all but drawing", f"{spent:.1f}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console = Console(width=100)
    console.print(table)
    console.print(
        f"{size / 1e6:.1f} MB, estimated as {estimate / 1e6:.1f} MB; {np.mean(of_queries) / 1e3:.0f} kB a query; "
        f"{content.num_examples:,} examples listed; {memory:.1f} GiB of memory at most, mapped "
        "files included"
    )


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
