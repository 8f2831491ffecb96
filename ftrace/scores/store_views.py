"""What a Python prompt and a notebook show of a score store: it reads a few columns, however large the store is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftrace.scores.html import facts_and_tables, table
from ftrace.scores.ranking import strongest
from ftrace.scores.stored_scores import StoredScores
from ftrace.scores.texts import Texts
from ftrace.shown_text import counted, plain

_QUERIES = 5


def describe_store(store: StoredScores) -> str:
    """Describe a store in a few lines of plain text."""
    lines = [f"  {name}: {value}" for name, value in store_facts(store)]
    return "\n".join([f"ScoreStore({plain(str(store.path))!r}): {_size(store)}", *map(plain, lines)])


def store_html(store: StoredScores) -> str:
    """Render a store as HTML: the facts, and its first queries with the strongest proponent of each."""
    facts = [("folder", str(store.path)), *store_facts(store)]
    try:
        tables = [_queries(store)]
    except ValueError as error:  # a notebook shows what there is
        facts, tables = [*facts, ("damaged", str(error))], []
    return facts_and_tables(f"ScoreStore: {_size(store)}", facts, *tables)


def store_facts(store: StoredScores) -> list[tuple[str, str]]:
    """Say what a store holds and what speaks against it: names and values."""
    manifest = store.manifest
    dtypes = sorted({str(dtype) for dtype in dict(manifest.get("dtype", {})).values()})
    facts = [("kinds", ", ".join(store.kinds) + (f" ({', '.join(dtypes)})" if dtypes else ""))]
    if store.breakdown:
        facts.append(("broken down by", ", ".join(f"{axis} ({len(parts)})" for axis, parts in store.breakdown.items())))
    if store.has_candidates:
        facts.append(("candidates", f"each query has its own, {manifest['num_pairs']:,} pairs in all"))
    if "method" in manifest:
        facts.append(("method", str(manifest["method"])))
    facts.append(("texts", _texts(store)))
    if store.has_ledger:
        said = manifest.get("ledger")
        facts.append(("ledger", str(said["summary"]) if isinstance(said, dict) and "summary" in said else "kept"))
    answers = manifest.get("answers")
    if isinstance(answers, dict) and answers:
        facts.append(("answers", ", ".join(f"{count} {state}" for state, count in answers.items())))
    if manifest.get("complete") is False:
        facts.append(("incomplete", "the scores don't cover the run from its first step to its last"))
    return facts + [("in doubt", sentence) for kind in store.kinds for sentence in store.doubts(kind)]


def _size(store: StoredScores) -> str:
    examples, queries = store.manifest["num_examples"], store.manifest["num_queries"]
    return f"{counted(examples, 'example')} x {counted(queries, 'query', 'queries')}"


def _texts(store: StoredScores) -> str:
    try:
        known = [what for what in ("examples", "queries") if getattr(store, what) is not None]
    except ValueError as error:
        return str(error)
    return f"of {' and '.join(known)}" if known else "none"


def _queries(store: StoredScores) -> str:
    """Render the first queries."""
    kind = store.default_kind or next(iter(store.kinds), None)
    if kind is None:
        return ""
    query_ids = store.query_ids[:_QUERIES]
    strengths, best_ids = [], []
    for query_id in query_ids.tolist():
        scores = store.scores(query_id, kind)
        best = strongest(scores, 1)
        has_proponent = bool(len(best)) and scores[best[0]] > 0
        strengths.append(f"{scores[best[0]]:.4g}" if has_proponent else None)
        best_ids.append(int(store.example_ids[best[0]]) if has_proponent else 0)
    names, texts = store.query_names_of(query_ids), _rows(store.queries, query_ids)
    best_names, best_texts = store.example_names_of(best_ids), _rows(store.examples, best_ids)
    rows = []
    for place, strength in enumerate(strengths):
        row = [names[place]]
        if store.queries is not None:
            row += [_cell(texts[place], "text"), _cell(texts[place], "answer")]
        row += ["", "none"] if strength is None else [strength, best_names[place]]
        if store.examples is not None:
            row.append("" if strength is None else _cell(best_texts[place], "text"))
        rows.append(row)
    header = ["query", *([] if store.queries is None else ["text", "answer"]), kind, "strongest proponent"]
    header += [] if store.examples is None else ["its text"]
    count = len(store.query_ids)
    caption = f"The first {len(rows)} of {count:,} queries" if count > len(rows) else "The queries"
    return table(f"{caption}, each with its strongest proponent by {kind}", header, rows)


def _rows(texts: Texts | None, ids: Sequence[int] | np.ndarray) -> Sequence[Mapping[str, Any] | None]:
    return [None] * len(ids) if texts is None else texts.rows(ids)


def _cell(row: Mapping[str, Any] | None, name: str) -> str:
    return "" if row is None or row.get(name) is None else str(row[name])
