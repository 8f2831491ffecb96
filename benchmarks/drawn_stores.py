"""Stores for benchmarks of reports: texts and scores of several methods, drawn at random.

Each query has examples that state its fact, which all methods find more or less; some examples score high for whatever
is asked, as in real runs. The first method kept a ledger: how each query's loss fell. Scores are written query by
query, so that memory doesn't grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.scores import EXAMPLE_ID, QUERY_ID, AnswerRecord, Ledger, ScoreStore, ScoreWriter, Texts
from ftrace.scores.ledger import COLUMNS, FILE

METHODS = ("learning", "update", "dot", "bm25")
WORDS = 20_000
SYLLABLES = ("ba", "den", "fu", "gor", "hil", "jo", "kra", "lum", "mi", "ner", "pol", "ra", "su", "tev", "wo", "zin")
STATING = 40  # examples of each fact
NOISE = (0.4, 0.6, 1.0, 0.5)  # of each method, where stating the fact counts 2
INTERVALS = 40  # of the ledger


def write_stores(folder: Path, examples: int, queries: int, words: int, seed: int) -> None:
    """Write a store for each method, with texts of about ``words`` words and the ledger in the first one."""
    generator = np.random.default_rng(seed)
    stating = generator.integers(0, examples, (queries, STATING))
    popular = generator.lognormal(0, 0.4, examples)
    texts = {
        "examples": Texts.of(list(_examples(generator, stating, examples, words)), EXAMPLE_ID),
        "queries": Texts.of(list(_queries(generator, stating)), QUERY_ID),
    }
    for method, noise in zip(METHODS, NOISE, strict=True):
        with ScoreWriter(folder / method, np.arange(examples), np.arange(queries), [method]) as writer:
            for query in range(queries):
                scores = popular * generator.normal(0, noise, examples)
                scores[stating[query]] += generator.lognormal(0.7, noise, STATING)
                if method == "bm25":  # which ties, and has no opponents
                    scores = np.maximum(scores, 0).round(1)
                writer.put(method, scores, columns=query)
            writer.finish({"method": method}, **(texts if method == METHODS[0] else {}))
    _ledger(generator, queries).write(folder / METHODS[0] / FILE)


def open_stores(folder: Path) -> list[ScoreStore]:
    """Open what :func:`write_stores` wrote, in the order of :data:`METHODS`."""
    return [ScoreStore.open(folder / method) for method in METHODS]


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
        yield {
            "query_id": query,
            "text": text,
            "answer": answer,
            "said": answer if generator.random() < 0.8 else _text(generator, 2),
            "fact": _fact(query),
            "proponent_ids": np.unique(of_query).tolist(),
        }


def _ledger(generator: np.random.Generator, queries: int) -> Ledger:
    """Draw losses that fall, each at its own time."""
    steps = 25 * np.arange(INTERVALS + 1)
    learned_at = generator.integers(0, 4 * INTERVALS // 3, queries)  # some never
    fall = 1 / (1 + np.exp((np.arange(INTERVALS + 1)[:, None] - learned_at) / 3))
    losses = 0.05 + 6 * fall + generator.normal(0, 0.02, fall.shape)
    columns = {name: np.full((INTERVALS, queries), np.nan) for name in COLUMNS}
    columns |= {"loss": losses[:-1], "next_loss": losses[1:]}
    answers = AnswerRecord(steps, np.arange(queries), fall < 0.5)
    return Ledger(steps[:-1], steps[1:], np.arange(queries), columns, answers=answers)


def _text(generator: np.random.Generator, words: int) -> str:
    """Draw words, some of which are as common as words of a language are."""
    drawn = (WORDS ** generator.random(words)).astype(int)
    return " ".join(_word(word) for word in drawn.tolist())


def _word(number: int) -> str:
    return "".join(SYLLABLES[number >> 4 * place & 15] for place in range(1 + number.bit_length() // 4))


def _fact(query: int) -> str:
    return f"r{query % 20}-e{query}-e{query * 7 % 1009}"
