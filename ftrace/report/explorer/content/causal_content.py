"""What a report shows of causal tracing for one query: maps of effects, and effects beside scores by layer."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from ftrace.files.manifests import read_json
from ftrace.files.noted_files import noted_files
from ftrace.report.explorer.format import Causal, CausalMediator, CausalProfile, CausalStack
from ftrace.report.explorer.short_numbers import rounded

if TYPE_CHECKING:  # it imports torch, and most reports have no traces
    from ftrace.causal import PromptTrace, Stack

FOLDER = "causal"
_DIGITS = 3
_COLUMNS = ("query_id", "stack", "layer", "part", "causal_effect", "score")
PROFILES, JOINED, SUMMARY = "layer_profiles.csv", "joined.csv", "joined.json"


class _Estimate(TypedDict):
    mean: float | None
    interval: tuple[float | None, float | None]


class JoinedFacts(TypedDict):
    """What is relied on of the figures that were written beside joined effects and scores."""

    outcome: Literal["probability", "log_probability", "logit_difference"]
    left_out: int
    rank_correlation: _Estimate
    rank_correlation_mismatched: _Estimate
    difference: _Estimate
    notes: list[str]


def read_joined(file: Path) -> dict[str, Any]:
    """Read the figures that were written beside joined effects and scores.

    Raises:
        OSError: If they can't be read.
        DamagedError: If they aren't what was written.
    """
    noted_files(file.parent).check(file.name)
    return read_json(file, JoinedFacts, digest=False)  # of an older ftrace, it has none


class CausalContent:
    """What causal tracing found of a run's queries, read query by query.

    Args:
        run: The run's folder; what is in ``causal`` in it is read.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER

    def of(self, query_id: int) -> Causal | None:
        """Read what was found of a query; None if nobody traced it.

        A file that can't be read is no error: what is returned says so.
        """
        file = self.folder / "prompts" / f"query-{query_id}.safetensors"
        if not file.exists():
            return None
        from ftrace.causal import read_trace

        try:
            trace = read_trace(file)
            if trace.query_id != query_id:
                raise ValueError(f"{file}: expected the trace of query {query_id}, found {trace.query_id}")
            stacks = [_stack(trace, stack) for stack in trace.stacks]
        except ValueError as error:
            return _not_read(str(error).replace(str(file), f"{FOLDER}/prompts/{file.name}"))
        clean, corrupted = rounded([float(trace.clean[0]), float(trace.corrupted[0])])
        return {
            "status": trace.status,
            "reason": trace.reason,
            "clean": clean,
            "corrupted": corrupted,
            "stacks": stacks,
            "profile": self._profile(query_id),
        }

    def _profile(self, query_id: int) -> CausalProfile | None:
        """Return effects and scores by layer; None if they were not joined for this query."""
        if not self._is_joined:
            return None
        try:
            rows = self._profiles.get(str(query_id))
            if rows is None:
                return None
            several = len({row["stack"] for row in rows} - {""}) > 1
            unit = self._unit
            return {
                "layers": [_label(row, several=several) for row in rows],
                "effects": rounded([unit.factor * _number(row["causal_effect"]) for row in rows], _DIGITS),
                "scores": rounded([_number(row["score"]) for row in rows], _DIGITS),
                "correlation": _correlation(self._correlations.get(str(query_id), "")),
                "notes": [*map(str, self._summary["notes"]), f"effects are in {unit.points}"],
            }
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            note = f"Effects can't be set beside scores: {JOINED}, {PROFILES} or {SUMMARY} is damaged ({error})"
            return {"layers": [], "effects": [], "scores": [], "correlation": None, "notes": [note]}

    @property
    def _is_joined(self) -> bool:
        return (self.folder / PROFILES).exists()

    @cached_property
    def _profiles(self) -> Mapping[str, Sequence[Mapping[str, str]]]:
        by_query: dict[str, list[Mapping[str, str]]] = {}
        for row in read_rows(self.folder / PROFILES, _COLUMNS):
            by_query.setdefault(row["query_id"], []).append(row)
        return by_query

    @cached_property
    def _correlations(self) -> Mapping[str, str]:
        return {
            row["query_id"]: row["rank_correlation"]
            for row in read_rows(self.folder / JOINED, ("query_id", "rank_correlation"))
        }

    @cached_property
    def _summary(self) -> Mapping[str, Any]:
        return read_joined(self.folder / SUMMARY)

    @property
    def _unit(self) -> Any:
        from ftrace.report.causal_words import UNITS

        return UNITS[self._summary["outcome"]]


def read_rows(file: Path, columns: Collection[str]) -> list[dict[str, str]]:
    """Read a CSV file with a header.

    Args:
        file: The file.
        columns: Names of columns that it must have.

    Raises:
        OSError: If there is none.
        ValueError: If it isn't what was written, lacks a column, a row has more or fewer cells than the header, or is
            not text.
        csv.Error: If it is damaged otherwise.
    """
    noted_files(file.parent).check(file.name)
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        rows, header = list(reader), reader.fieldnames or ()
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"expected a column {missing[0]!r} in {file.name}, found {list(header)[:9]}")
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(f"expected {len(rows[0])} cells in each row of {file.name}, found more or fewer")
    return rows


def _stack(trace: PromptTrace, stack: Stack) -> CausalStack:
    from ftrace.report.causal_words import in_order

    traced = trace.stacks[stack]
    return {
        "name": stack,
        "tokens": list(traced.tokens),
        "subject": traced.subject,
        "mediators": [_mediator(trace, stack, mediator) for mediator in in_order(traced.restored)],
    }


def _mediator(trace: PromptTrace, stack: Stack, mediator: str) -> CausalMediator:
    """Return one map of effects on the answer's probability."""
    from ftrace.causal.readout import readout_cells
    from ftrace.report.causal_words import UNITS, mediator_title

    traced = trace.stacks[stack]
    effects_TL = UNITS["probability"].factor * trace.indirect_effect(stack, mediator, "probability").T
    effects_TL = effects_TL.round(9) + 0.0  # what is 0 but for rounding is shown as 0
    if effects_TL.ndim != 2 or len(effects_TL) != len(traced.tokens) or not effects_TL.size:
        raise ValueError(
            f"expected effects of {len(traced.tokens)} tokens in the {stack} of prompt {trace.name!r}, found an array "
            f"of shape {effects_TL.shape}: trace it again"
        )
    reads_subject = traced.subject[0] < traced.subject[1]
    shape = (effects_TL.shape[0], effects_TL.shape[1])
    readout = readout_cells(stack, mediator, shape, len(effects_TL) - 1, reads_subject=reads_subject)
    counts = np.where(readout | ~np.isfinite(effects_TL), -np.inf, effects_TL)
    token, layer = np.unravel_index(counts.argmax(), shape)
    return {
        "title": mediator_title(mediator),
        "effects": [rounded(row, _DIGITS) for row in effects_TL],
        "readout": [(int(token), int(layer)) for token, layer in np.argwhere(readout)],
        "peak": (int(token), int(layer)) if np.isfinite(counts).any() else None,
    }


def _label(row: Mapping[str, str], *, several: bool) -> str:
    """Name a layer as :func:`ftrace.report.joined_tables.layer_label`, and another part of the model by its name."""
    if not row["stack"]:
        return row["part"]
    return f"{row['stack']} {row['layer']}" if several else row["layer"]


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan


def _correlation(cell: str) -> float | None:
    return round(float(cell), 3) + 0.0 if cell else None  # and never -0.0


def _not_read(reason: str) -> Causal:
    return {
        "status": "refused", "reason": reason, "clean": None, "corrupted": None, "stacks": [], "profile": None,
    }  # fmt: skip
