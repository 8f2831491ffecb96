"""The folder of a finished run, as far as it is read without its model: which there are, its stores, kept answers.

:mod:`ftrace.runs` reads the rest. This module imports no torch, so that what is on disk already is shown at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from ftrace.files.digests import DamagedError
from ftrace.files.inside import inside
from ftrace.files.manifests import content_of_ours, read_json, write_json
from ftrace.scores.store_files import EXAMPLE_IDS, FORMAT, MANIFEST

CONFIG = "config.yaml"
ANSWERS, LEARNED = "answers.json", "learned_queries.json"
ONLINE = "online"


class LearnedFacts(TypedDict):
    """Which queries were learned: the fields of :class:`ftrace.evaluation.LearnedQueries`."""

    rule: Literal["paper", "last"]
    query_ids: list[int]
    asked: int
    right_at_last: int
    known_at_first: int
    snapshots: list[str]
    key: str


class _LearnedByRule(TypedDict):
    paper: NotRequired[LearnedFacts]
    last: NotRequired[LearnedFacts]


class _Said(TypedDict):
    text: str | None
    probability: float
    right: bool


class _Answers(TypedDict):
    key: str
    stamp: list[str | int]
    answers: dict[str, _Said]


class UntrustedError(ValueError):
    """The refusal to follow what a run's config names: see :mod:`ftrace.run_classes`."""


def newest_run(folder: str | Path) -> Path:
    """Return a run's folder, or its newest version if the folder holds only the versions of Lightning's loggers.

    Example:
        >>> newest_run("runs/a").name  # not checked here: Run() raises
        'a'
    """
    given = Path(folder)
    if is_run(given):
        return given
    versions = {
        config.parent: config.parent.name.removeprefix("version_") for config in given.glob(f"version_*/{CONFIG}")
    }
    numbers = {version: int(number) for version, number in versions.items() if number.isdigit()}
    return max(numbers, key=lambda version: numbers[version], default=given)


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a run, which holds its config."""
    return (folder / CONFIG).exists()


def stores_in(run: Path) -> list[Path]:
    """List the folders of the score stores in a run's folder: the online scores first, then by name."""
    folders = sorted(manifest.parent for manifest in run.glob(f"*/{MANIFEST}") if _is_of_store(manifest))
    return sorted(folders, key=lambda folder: folder.name != ONLINE)


def _is_of_store(manifest: Path) -> bool:
    try:
        facts = content_of_ours(manifest)
    except DamagedError:
        return (manifest.parent / EXAMPLE_IDS).exists()  # a store, whose reader says what is wrong with it
    return facts is not None and facts.get("format") == FORMAT


def last_snapshot(run: Path) -> Path | None:
    """Return the folder of a run's last snapshot; None if there is none."""
    return max((file.parent for file in run.glob("snapshots/step-*/snapshot.json")), default=None)


def kept_learned(run: Path) -> dict[str, LearnedFacts]:
    """Return which queries were found to be learned, by rule; what can't be read is made anew."""
    with contextlib.suppress(OSError, ValueError):
        kept: Any = read_json(inside(run, LEARNED), _LearnedByRule)
        return {rule: kept[rule] for rule in ("paper", "last") if rule in kept}
    return {}


def keep_learned(run: Path, learned: Mapping[str, LearnedFacts]) -> None:
    """Keep which queries were found to be learned, by rule."""
    write_json(inside(run, LEARNED), learned)


def fresh_answers(run: Path) -> dict[int, Any]:
    """Return the kept answers of a run's model to queries by id, if they are surely of its last snapshot; else {}.

    Each is a mapping with ``text``, ``probability`` and ``right``.
    """
    snapshot = last_snapshot(run)
    kept = _read_answers(run)
    return kept["answers"] if snapshot is not None and kept.get("stamp") == _stamp(snapshot) else {}


def kept_answers(run: Path, key: str) -> dict[int, Any]:
    """Return the kept answers of a run's model to queries by id, as far as they depend on the same key; else {}."""
    kept = _read_answers(run)
    return kept["answers"] if kept.get("key") == key else {}


def keep_answers(run: Path, key: str, answers: Mapping[int, Mapping[str, Any]]) -> None:
    """Keep answers of a run's model at its last snapshot.

    Args:
        run: The run's folder.
        key: A hash of what they depend on.
        answers: By the query's id: ``text``, ``probability`` and ``right``.
    """
    snapshot = last_snapshot(run)
    assert snapshot is not None
    content = {"key": key, "stamp": _stamp(snapshot), "answers": {str(query): said for query, said in answers.items()}}
    write_json(inside(run, ANSWERS), content)


def _read_answers(run: Path) -> dict[str, Any]:
    """Read the file; what can't be read is made anew."""
    with contextlib.suppress(OSError, ValueError):
        kept = read_json(inside(run, ANSWERS), _Answers)
        answers = {
            int(query): {name: said[name] for name in ("text", "probability", "right")}
            for query, said in kept["answers"].items()
        }
        return {"key": kept["key"], "stamp": kept["stamp"], "answers": answers}
    return {"answers": {}}


def _stamp(snapshot: Path) -> list[str | int]:
    """Tell a snapshot's weights from others without reading them; a copy of them has another stamp."""
    weights = snapshot / "weights.safetensors"
    if not weights.exists():
        return [snapshot.name]
    facts = weights.stat()
    return [snapshot.name, facts.st_size, facts.st_mtime_ns]
