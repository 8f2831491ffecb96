"""Means of the scores of other methods, such as TracIn + EMBED (Akyürek et al. 2022, arXiv 2205.11482)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ftrace.arguments import Name, checked
from ftrace.attribution.method import AttributionMethod, Task
from ftrace.scores import ScoreStore


@checked
@dataclass(frozen=True)
class Ensemble(AttributionMethod):
    """Mean of scores of finished stores.

    Args:
        members: Store folders with a kind after the last colon, such as [tracin:cosine, embed:both.2]. Relative ones
            start from the run's folder.
        standardize: Give each member mean 0 and variance 1 for each query first, as scores of different units need.
    """

    name: ClassVar[Name] = "ensemble"

    members: Sequence[Name]
    standardize: bool = False

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ValueError(f"members: expected at least two, found {list(self.members)}")

    def score(self, task: Task) -> ScoreStore:
        """Combine the members' scores of the task's examples."""
        opened = [_open(task, member) for member in self.members]
        first, first_name = opened[0][0], self.members[0]
        for (store, _), name in zip(opened[1:], self.members[1:], strict=True):
            for what, ids, others in (
                ("examples", first.example_ids, store.example_ids),
                ("queries", np.sort(first.query_ids), np.sort(store.query_ids)),
            ):
                if not np.array_equal(ids, others):
                    raise ValueError(
                        f"members: expected all to cover the same {what}, found {len(ids)} in {first_name!r} and "
                        f"{len(others)} in {name!r}, {len(np.intersect1d(ids, others))} of them the same. Score both "
                        "with the same --candidates and --queries"
                    )
        for what, wanted, there in (
            ("examples", task.examples, first.example_ids),
            ("queries", task.queries, first.query_ids),
        ):
            missing = np.setdiff1d(wanted, there)
            if len(missing):
                raise ValueError(
                    f"members: expected scores for all {len(wanted)} {what}, found none for {missing[:3].tolist()}. "
                    "Give the --candidates and --queries that the members were scored with"
                )
        rows = np.searchsorted(first.example_ids, task.examples)
        columns = ({"mean": self._mean(opened, int(query), rows)} for query in task.queries)
        return task.write(self, columns, members=[_facts(store) for store, _ in opened])

    def _mean(self, opened: Sequence[tuple[ScoreStore, str]], query: int, rows: np.ndarray) -> np.ndarray:
        scores = [store.scores(query, kind)[rows] for store, kind in opened]
        if self.standardize:
            scores = [standardized(of_member) for of_member in scores]
        mean: np.ndarray = np.mean(scores, axis=0)
        return mean


def standardized(scores: np.ndarray) -> np.ndarray:
    """Scale scores to mean 0 and variance 1; they become zeros where all are the same.

    Example:
        >>> standardized(np.array([1.0, 3.0])).tolist()
        [-1.0, 1.0]
    """
    centred = scores - scores.mean(dtype=np.float64)
    spread = centred.std()
    scaled: np.ndarray = (centred / spread if spread else 0 * centred).astype(scores.dtype)
    return scaled


def _facts(store: ScoreStore) -> dict[str, Any]:
    return {key: store.manifest.get(key) for key in ("method", "options", "snapshots", "seconds")}


def _open(task: Task, member: str) -> tuple[ScoreStore, str]:
    folder, colon, kind = member.rpartition(":")
    if not colon:
        raise ValueError(f"members: expected a store's folder and a kind, such as tracin:cosine, found {member!r}")
    path = task.run_dir / folder
    try:
        store = ScoreStore.open(path)
    except FileNotFoundError as error:
        raise ValueError(f"members: no score store at {str(path)!r}. Run ftrace attribute for it first") from error
    facts: dict[str, Any] = store.manifest
    if kind not in facts["kinds"]:
        from ftrace.gradients import nearest  # imports torch

        raise ValueError(f"members: {folder!r} has no kind {kind!r}. {nearest(kind, facts['kinds'])}")
    if store.has_candidates:
        raise ValueError(
            f"members: in {folder!r} each query has its own candidates. Score all on the same set of examples"
        )
    return store, kind
