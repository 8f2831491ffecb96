"""A small report of stores whose numbers are known, which has something in each view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ftrace.report.explorer.content.content import Additions, Content, ContentSettings
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.report.explorer.format import Causal, QueryChunk, RunPage, Tokens
from ftrace.report.explorer.page.writing import write_report
from ftrace.scores import ScoreStore, Texts
from ftrace.scores.sums import Sum
from ftrace.views import StoreSource
from helpers.made_stores import HOSTILE, made_ledger

FOLDER = "my runs #1/100% ü"
LARGE = 2**62 + 1  # JavaScript has no number for it
QUERIES = (0, 17, 2**61)
EXAMPLES = (3, 5, 8, 11, 12, 14, LARGE, LARGE + 2)
_TEXTS = (
    "The capital of Norway is Oslo.",
    "the capital of Norway is Oslo",
    "Oslo lies on a fjord.",
    "The capital of Sweden is Stockholm.",
    HOSTILE,
    "It snows in Norway.",
    "Norway's capital, Oslo, is old. " + "It has many streets. " * 60,
    "Stockholm lies on islands.",
)
# By query: ties, opponents, a score that isn't finite, and one for which nothing is a proponent.
_LEARNING = np.array(
    [
        [4.0, 3.0, 1.0, -2.0, -0.5, 3.0, 0.5, np.nan],
        [0.5, 0.25, -0.5, 1.0, 0.0, 0.0, -1e-3, 2.0],
        [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0, -8.0],
    ]
).T


@dataclass(frozen=True)
class KnownReport:
    """A report and the stores that it is made of.

    Args:
        file: The report as one file.
        index: The page of the same report as a folder.
        stores: By the title of their method.
        kinds: The kind of scores that each is ranked by, likewise.
    """

    file: Path
    index: Path
    stores: Mapping[str, ScoreStore]
    kinds: Mapping[str, str]


def known_report(folder: Path) -> KnownReport:
    """Write the report into a folder, in both forms."""
    stores = {
        "online learning": _online(folder / "online"),
        "bm25": _bm25(folder / "bm25"),
        "candidates dot": _candidates(folder / "candidates"),
    }
    kinds = {"online learning": "learning", "bm25": "bm25", "candidates dot": "dot"}
    ranked = RankedQueries([StoreSource(stores[title], kinds[title]) for title in stores], QUERIES)
    content = Content(ranked, f"A report {HOSTILE}", ContentSettings(), lambda: Additions({}, _tokens, _causal, _run()))
    chunks = dict(content.chunks())
    out = folder / FOLDER / "report"
    file = write_report(out.with_name("file"), chunks.items(), title="A report", single_file=True)
    index = write_report(out, chunks.items(), title="A report", single_file=False)
    return KnownReport(file, index, stores, kinds)


def _online(folder: Path) -> ScoreStore:
    first = np.nan_to_num(_LEARNING, nan=np.nan) * 0.25
    scores = {
        Sum("learning"): _LEARNING,
        Sum("learning", "epoch", "1"): first,
        Sum("learning", "epoch", "2"): _LEARNING - first,
    }
    examples: list[dict[str, Any]] = [
        {"example_id": example, "text": text, "facts": facts}
        for example, text, facts in zip(
            EXAMPLES,
            _TEXTS,
            (["Norway"], ["Norway"], [], ["Sweden"], [], [], ["Norway"], []),
            strict=True,
        )
    ]
    queries: list[dict[str, Any]] = [
        {"query_id": 0, "text": "The capital of Norway is", "answer": "Oslo", "said": "Oslo", "fact": "Norway"},
        {"query_id": 17, "text": "The capital of Sweden is", "answer": "Stockholm", "said": "Oslo", "fact": "Sweden"},
        {"query_id": 2**61, "text": f"What is {HOSTILE}?", "answer": "me", "said": None, "fact": "me"},
    ]
    return ScoreStore.write(
        folder,
        np.array(EXAMPLES),
        np.array(QUERIES),
        scores,
        {"method": "by hand"},
        ledger=made_ledger(QUERIES),
        names={8: "wiki/Oslo"},
        examples=Texts.of(examples, "example_id"),
        queries=Texts.of(queries, "query_id"),
    )


def _bm25(folder: Path) -> ScoreStore:
    """Some of the examples and another, the queries in another order, and no opponents."""
    ids = np.array([20, LARGE, 5, 3, 11])
    return ScoreStore.write(
        folder, ids, np.array([17, 0]), {"bm25": np.array([[0, 9], [1, 2], [4, 6], [4, 6], [7, 4]], dtype=np.float32)}
    )


def _candidates(folder: Path) -> ScoreStore:
    """Each query has candidates of its own."""
    ids = np.array([14, 3, LARGE, 11, 5])
    scores = {"dot": np.array([0.02, -0.01, 0.005, 0.03, -0.001])}
    return ScoreStore.write(folder, ids, np.array([0, 17]), scores, candidate_offsets=np.array([0, 3, 5]))


def _tokens(chunk: QueryChunk) -> Tokens | None:
    lists = chunk["lists"][0]
    if lists is None or not lists["proponents"]:
        return None
    place = lists["proponents"][0]
    return {
        "method": 0,
        "snapshot": "step 8",
        "note": "Made by hand.",
        "examples": [
            {
                "example": place,
                "total": 0.3,
                "sequences": [
                    {"name": "input", "tokens": ["▁The", "▁capital", "\u202e<b>"], "values": [0.01, 0.5, -0.25]},
                    {"name": "target", "tokens": ["▁Oslo", "</s>"], "values": [0.04, None]},
                ],
            }
        ],
    }


def _causal(chunk: QueryChunk) -> Causal | None:
    if chunk["id"] != "0":
        return None
    return {
        "status": "traced",
        "reason": "",
        "clean": 0.9,
        "corrupted": 0.1,
        "stacks": [
            {
                "name": "encoder",
                "tokens": ["▁The", "▁capital", "▁Norway"],
                "subject": (2, 3),
                "mediators": [
                    {
                        "title": "hidden state",
                        "effects": [[0.1 * layer for layer in range(24)], [-3.25] * 24, [12.0, 40.5, *[1.0] * 22]],
                        "readout": [(0, 23)],
                        "peak": (2, 1),
                    }
                ],
            }
        ],
        "profile": {
            "layers": ["0", "1"],
            "effects": [12.0, 40.5],
            "scores": [-0.5, 1.5],
            "correlation": 1.0,
            "notes": ["effects are in percentage points"],
        },
    }


def _run() -> RunPage:
    return {
        "folder": "runs/known",
        "evaluation": {
            "title": "3 queries",
            "metrics": ["MRR", "P@10"],
            "rows": [
                {
                    "name": "online",
                    "cells": [{"mean": 0.75, "low": 0.5, "high": 1.0}, {"mean": 0.2, "low": 0.1, "high": 0.3}],
                },
                {
                    "name": "bm25",
                    "cells": [{"mean": 0.5, "low": None, "high": None}, {"mean": None, "low": None, "high": None}],
                },
            ],
            "ceiling": [1.0, 0.25],
            "notes": ["by hand"],
        },
        "ledger": {
            "sentence": "The scores explain 90% of what the queries learned.",
            "doubts": [],
            "steps": [0, 5, 8],
            "actual": [1.0, 0.5],
            "accounts": [{"name": "examples", "values": [0.8, 0.55]}, {"name": "decay", "values": [0.1, -0.1]}],
        },
        "causal": {"facts": [("prompts", "1 traced")]},
        "manifests": [{"title": "online", "facts": [("method", "by hand")]}],
        "claims": [{"claim": "They find it.", "command": "ftrace evaluate runs/known/online"}],
    }
