"""The content of a small report, made up, with something in every view."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from ftrace.report.explorer.format import Example, Head, QueryChunk

TITLES = ("online learning", "tracin dot", "bm25")
LAYERS = ("model.h.0", "model.h.1", "model.h.2")
EXAMPLES = 20


def made_head(queries: int = 3) -> Head:
    """A head with three methods, an evaluation with a ceiling, and a ledger."""
    cell = {"mean": 0.34, "low": 0.31, "high": 0.36}
    unknown = {"mean": 0.2, "low": None, "high": None}
    nothing: list[Any] = [None] * queries
    methods = [
        {
            "title": title, "kind": title.split()[-1], "unit": "nats" if title.endswith("dot") else "", "doubts": [],
            "is_complete": True, "num_examples": EXAMPLES, "has_opponents": True,
            "axes": {"layer": LAYERS, "epoch": ["0", "1"]} if title == TITLES[0] else {},
        }
        for title in TITLES
    ]  # fmt: skip
    head = {
        "format": "ftrace-report", "version": 1, "made_by": "ftrace", "title": "a run", "fingerprint": "0",
        "is_redacted": False, "limits": [], "methods": methods, "example_chunks": [],
        "queries": {
            "ids": [str(number) for number in range(queries)], "names": nothing, "prompts": nothing,
            "answers": nothing, "said": nothing, "said_right": nothing, "first_losses": nothing,
            "last_losses": nothing, "learned_steps": nothing, "states": nothing, "precisions": [nothing] * len(TITLES),
            "disagreements": nothing, "facets": {},
        },
        "run": {
            "folder": "runs/a",
            "evaluation": {
                "title": "80 queries", "metrics": ["P@10", "O@10"], "ceiling": [0.37, None], "notes": ["a note"],
                "rows": [{"name": title, "cells": [cell, unknown]} for title in TITLES],
            },
            "ledger": {
                "sentence": "the scores explain 90%", "doubts": [], "steps": [0, 10, 20], "actual": [2.0, 0.5],
                "accounts": [{"name": "examples", "values": [1.5, 0.75]}, {"name": "decay", "values": [-0.25, None]}],
            },
            "causal": None, "manifests": [], "claims": [],
        },
    }  # fmt: skip
    return cast("Head", head)


def made_query(number: int = 0, seed: int = 0) -> QueryChunk:
    """A query with everything that a report may know of one; each method ranks the examples in an order of its own."""
    generator = np.random.default_rng(seed)
    scores = generator.permutation(np.linspace(-0.5, 1, EXAMPLES + 1)[:-1] * np.ones((len(TITLES), 1)), axis=1)
    scores[1:] = generator.permuted(scores[1:], axis=1)
    orders = np.argsort(-scores, axis=1)
    examples = [_example(position, scores, orders) for position in range(EXAMPLES)]
    lists = [
        {
            "candidates": EXAMPLES, "positive": int((own > 0).sum()), "negative": int((own < 0).sum()),
            "proponents": order[own[order] > 0].tolist(), "opponents": order[own[order] < 0][::-1].tolist(),
            "more_proponents_like_last": 0, "more_opponents_like_last": 0,
        }
        for own, order in zip(scores, orders, strict=True)
    ]  # fmt: skip
    strongest = lists[0]["proponents"][:6]
    parts = generator.normal(0, 0.2, (len(strongest), 5)).round(3).tolist()
    effects = generator.normal(10, 5, (2, 4, 3)).round(2)
    effects[0, -1] = (1, 50, 90)  # where the answer is read off
    counted = effects[0, :-1]
    chunk = {
        "id": str(number), "name": "capital", "prompt": "Oslo is the capital of", "cut": 0, "answer": "Norway",
        "accepted": [], "said": {"text": "Sweden", "probability": 0.25, "right": False, "snapshot": "last"},
        "properties": [], "warnings": ["Scores are small."],
        "loss": {"steps": [0, 10, 20], "values": [5.0, None, 1.0]},
        "answered": {"state": "learned", "step": 20, "text": "first answered right at step 20"},
        "examples": examples, "lists": lists,
        "parts": [
            {"method": 0, "axis": "layer", "examples": strongest, "values": [row[:3] for row in parts]},
            {"method": 0, "axis": "epoch", "examples": strongest, "values": [row[3:] for row in parts]},
        ],
        "tokens": {
            "method": 0, "snapshot": "last", "note": "Each value is a token's part.",
            "examples": [
                {"example": position, "total": 0.003, "sequences": [
                    {"name": "text", "tokens": ["Oslo", " is", " far"], "values": [0.004, -0.001, 0.0]},
                ]}
                for position in strongest
            ],
        },
        "causal": {
            "status": "traced", "reason": "", "clean": 0.9, "corrupted": 0.1,
            "stacks": [{
                "name": "decoder", "tokens": ["Oslo", " is", " capital", " of"], "subject": (0, 1),
                "mediators": [
                    {"title": "hidden state", "effects": effects[0].tolist(), "readout": [(3, 0), (3, 1), (3, 2)],
                     "peak": tuple(np.unravel_index(counted.argmax(), counted.shape))},
                    {"title": "MLP window", "effects": effects[1].tolist(), "readout": [],
                     "peak": tuple(np.unravel_index(effects[1].argmax(), effects[1].shape))},
                ],
            }],
            "profile": {"layers": ["0", "1", "2", "wte"], "effects": [1.0, 4.0, 2.0, None],
                        "scores": [0.1, 0.3, -0.2, 0.05], "correlation": 0.5, "notes": ["effects are in points"]},
        },
    }  # fmt: skip
    return cast("QueryChunk", chunk)


def _example(position: int, scores: np.ndarray, orders: np.ndarray) -> Example:
    places = []
    for own, order in zip(scores, orders, strict=True):
        rank = int(np.flatnonzero(order == position)[0])
        places.append({
            "rank": rank + 1, "rank_from_below": EXAMPLES - rank, "ties": 0, "score": float(own[position]),
            "share": float(own[position]),
        })  # fmt: skip
    example = {
        "id": str(1000 + position), "name": None, "text": f"Text {position} says that Oslo is in Norway.", "cut": 0,
        "answer": "Norway", "states_fact": position % 3 == 0, "kind": None if position % 3 == 0 else "same subject",
        "shared": [], "places": places, "alike": position,
    }  # fmt: skip
    return cast("Example", example)
