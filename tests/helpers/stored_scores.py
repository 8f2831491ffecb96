"""Formats of scores for the fuzz test: stores of each form, unfinished scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ftrace.attribution.partial_scores import Block, BlockRange, PartialScores
from ftrace.files import digests
from ftrace.scores import ScoreStore, Sum, Texts, stable_id
from helpers.edited_json import as_version_1
from helpers.fuzzed_files import StoredFormat
from helpers.made_store import make_ledger, make_store


def _make_store(folder: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    keys = (Sum("dot"), Sum("dot", "layer", "first"), Sum("dot", "layer", "last"), Sum("learning"))
    texts = Texts.of([{"query_id": 0, "text": f"What is {seed}?", "answers": ["a", "b"]}], "query_id")
    store = make_store(
        folder,
        {key: generator.normal(size=(5, 2)).astype(np.float32) for key in keys},
        manifest={
            "method": f"test {seed}",
            "doubts": {"learning": ["none"]},
            "ledger": {"summary": "fell", "fall": 1.0},
        },
        ledger=make_ledger(rest=float(seed)),
    )
    store.put_texts(queries=texts)


def _make_named_pairs(folder: Path, seed: int) -> None:
    names = [f"{name}{seed}" for name in "abcq"]
    examples = np.sort([stable_id(name) for name in names[:3]])
    ScoreStore.write(
        folder,
        examples[[0, 2, 1, 2]],
        np.array([5, stable_id(names[3])]),
        {"dot": np.random.default_rng(seed).normal(size=4)},
        candidate_offsets=np.array([0, 2, 4]),
        names={stable_id(name): name for name in names},
    )


def _make_old_store(folder: Path, seed: int) -> None:
    _make_store(folder, seed)
    as_version_1(folder / "manifest.json")


def read_store(folder: Path) -> Any:
    """Read all that a store says."""
    store = ScoreStore.open(folder)
    queries = range(len(store.query_ids))
    keys = [Sum(kind) for kind in store.kinds]
    keys += [
        Sum(kind, axis, part)
        for kind in store.kinds
        for axis, parts in store.breakdown_of(kind).items()
        for part in parts
    ]
    return {
        "manifest": store.manifest,
        "ids": (store.example_ids, store.query_ids, store.example_names, store.query_names),
        "scores": {key: [store.column(query, key) for query in queries] for key in keys},
        "matrices": {kind: None if store.has_candidates else store.matrix(kind) for kind in store.kinds},
        "texts": [texts and texts.rows(texts.ids) for texts in (store.examples, store.queries)],
        "ledger": store.ledger and {**store.ledger.columns, "ids": store.ledger.query_ids, "steps": store.ledger.steps},
        "answers": store.answers and {"steps": store.answers.steps, "right": store.answers.right},
        "doubts": {kind: store.doubts(kind) for kind in store.kinds},
        "files": list(store.checked_files()),
        "shown": [repr(store), store.to_pandas(k=2).to_dict("list")],
    }


def _partial(folder: Path, seed: int) -> PartialScores:
    partial = PartialScores(folder / "s", {"method": "test", "seed": seed})
    partial.begin()
    return partial


def _block(number: int, seed: int) -> Block:
    """What any command with the same settings computes."""
    generator = np.random.default_rng([number, seed])
    keys = (Sum("dot"), Sum("dot", "layer", "a"))
    return Block({key: generator.normal(size=(3, 2)) for key in keys}, seed + 0.5, 100)


def _make_partial(folder: Path, seed: int) -> None:
    partial = _partial(folder, seed)
    for number in range(2):
        partial.add(BlockRange(0, 2, number), 0, _block(number, seed))


def _read_partial(folder: Path) -> Any:
    """Read the blocks as a command does that goes on: it computes those that aren't there."""
    seed = int(folder.name == "other")
    partial = _partial(folder, seed)
    done = partial.passes_done()
    ranges = [BlockRange(0, 2, number) for number in range(2)]
    return [partial.read(each, done[each]) if each in done else _block(each.block, seed) for each in ranges]


def _as_large(work: Callable[..., Any]) -> Callable[..., Any]:
    """Let every file be a large one, of which blocks are verified."""

    def with_small_blocks(*arguments: Any) -> Any:
        with patch.multiple(digests, SMALL=64, BLOCK=48):
            return work(*arguments)

    return with_small_blocks


STORED_SCORES = {
    "score store": StoredFormat(_make_store, read_store),
    "score store of large files": StoredFormat(_as_large(_make_store), _as_large(read_store)),
    "score store of pairs with names": StoredFormat(_make_named_pairs, read_store),
    "score store of version 1": StoredFormat(_make_old_store, read_store, has_digests=False),
    "unfinished scores": StoredFormat(_make_partial, _read_partial),
}
