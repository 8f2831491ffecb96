"""The task of a method: which examples to score for which queries, with which model, and where the scores go."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ftrace.arguments import Name, NonNegativeNumber, Positive, checked
from ftrace.data import FactData
from ftrace.files.claims import claimed
from ftrace.gradients import full_name, nearest
from ftrace.models import FactLM
from ftrace.progress import track
from ftrace.scores import EXAMPLE_ID, QUERY_ID, ScoreStore, ScoreWriter, Texts

Row = dict[str, Any]
WhichSnapshots = Literal["last", "first", "all"] | int | Sequence[int]


class Described(Protocol):
    """A method, as far as a store's manifest describes it."""

    name: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """Give the options as JSON holds them."""


@checked
@dataclass(frozen=True)
class Task:
    """Examples and queries of a finished run.

    Args:
        data: The run's data, set up.
        output_dir: Where the score store goes.
        snapshots: Folders of the run's snapshots, by step.
        load_model: Returns the model of a snapshot, a new one with each call.
        example_ids: The examples to score, int64 ascending; None: all.
        query_ids: The queries to score for; None: all.
        run_dir: The folder that relative paths of other stores start from.
        accelerator: Lightning's: "auto", "cpu", "gpu", ...
        devices: Lightning's: how many processes share the work.
        strategy: Lightning's: "auto", "ddp", ...
        memory_budget: Bytes that a method may hold of the queries. Scores don't depend on it.
        batch_size: Examples of a batch; None: as the data's.
        manifest: More to say about the scores.
        started: When the work began, by ``time.perf_counter``.

    Raises:
        ValueError: If there is nothing to score, or ids are not the data's.
    """

    data: FactData
    output_dir: Path
    snapshots: Sequence[Path] = ()
    load_model: Callable[[Path], FactLM] | None = None
    example_ids: np.ndarray | None = None
    query_ids: np.ndarray | None = None
    run_dir: Path = Path()
    accelerator: Name = "auto"
    devices: Positive | Name = 1
    strategy: Name = "auto"
    memory_budget: Positive = 2 * 2**30
    batch_size: Positive | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    started: NonNegativeNumber = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        for what, ids, count in (
            ("examples", self.examples, len(self.data.train_rows)),
            ("queries", self.queries, len(self.data.query_rows)),
        ):
            if not len(ids):
                raise ValueError(f"expected at least one of the {count} {what} to be chosen, found none")
        if (np.diff(self.examples) <= 0).any():
            raise ValueError("example_ids: expected ascending ids, each once")
        if self.examples[0] < 0 or self.examples[-1] >= len(self.data.train_rows):
            bounds = f"from {self.examples[0]} to {self.examples[-1]}"
            raise ValueError(f"example_ids: expected ids from 0 to {len(self.data.train_rows) - 1}, found {bounds}")
        unknown = sorted(set(self.queries.tolist()) - self._positions.keys())
        if unknown or len(set(self.queries.tolist())) < len(self.queries):
            raise ValueError(f"query_ids: expected ids of the data's queries, each once; unknown: {unknown[:3]}")

    @cached_property
    def examples(self) -> np.ndarray:
        """Ids of the examples, int64 ``[N]``, ascending. An id is also the row's position in ``data.train_rows``."""
        if self.example_ids is None:
            return np.arange(len(self.data.train_rows), dtype=np.int64)
        return np.asarray(self.example_ids, np.int64)

    @cached_property
    def queries(self) -> np.ndarray:
        """Ids of the queries, int64 ``[Q]``."""
        ids = self.data.query_rows["query_id"] if self.query_ids is None else self.query_ids
        return np.asarray(ids, np.int64)

    @cached_property
    def _positions(self) -> dict[int, int]:
        return {query: position for position, query in enumerate(self.data.query_rows["query_id"])}

    def example_rows(self, start: int = 0, stop: int | None = None) -> list[Row]:
        """Read the rows of a range of :attr:`examples`."""
        return _rows(self.data.train_rows[self.examples[start:stop]])

    def query_rows(self, start: int = 0, stop: int | None = None) -> list[Row]:
        """Read the rows of a range of :attr:`queries`."""
        return _rows(self.data.query_rows[[self._positions[query] for query in self.queries[start:stop].tolist()]])

    def texts(self) -> tuple[Texts, Texts]:
        """Return what a person reads of :attr:`examples` and :attr:`queries`."""
        examples, queries = self.data.describe()
        return (
            Texts.of(examples, EXAMPLE_ID, None if self.example_ids is None else self.examples),
            Texts.of(queries, QUERY_ID, None if self.query_ids is None else self.queries),
        )

    def query_batches(self, start: int = 0, stop: int | None = None) -> list[dict[str, Tensor]]:
        """Collate a range of the queries into batches of the data's size."""
        return self.data.query_batches(self.query_rows(start, stop))

    def choose_snapshots(self, which: WhichSnapshots) -> list[Path]:
        """Choose some of the run's snapshots, by step.

        Raises:
            ValueError: If the run has none, or none of a step that is asked for.
        """
        if not self.snapshots:
            raise ValueError("the run has no snapshots, and this method reads them. Train with CheckpointSnapshots")
        if isinstance(which, str):
            return {"last": list(self.snapshots[-1:]), "first": list(self.snapshots[:1])}.get(
                which, list(self.snapshots)
            )
        steps = sorted({which} if isinstance(which, int) else set(which))
        by_step = {int(folder.name.removeprefix("step-")): folder for folder in self.snapshots}
        unknown = [step for step in steps if step not in by_step]
        if unknown or not steps:
            raise ValueError(f"snapshots: expected steps of {sorted(by_step)}, found {unknown or 'none'}")
        return [by_step[step] for step in steps]

    def model_at(self, snapshot: Path) -> FactLM:
        """Load the model at a snapshot, in eval mode.

        Raises:
            ValueError: If the snapshot is of another model, or the data's tokens are not the model's.
        """
        if self.load_model is None:
            raise ValueError("the task has no model to load")
        model = self.load_model(snapshot).eval()
        if model.architecture != self.data.architecture:
            raise ValueError(f"expected data for {model.architecture} models, found {self.data.architecture}")
        words, rows = len(self.data.tokenizer or ()), model.model.get_input_embeddings().weight.shape[0]
        if words > rows:
            raise ValueError(
                f"expected a tokenizer of at most {rows} tokens, as the model has, found one of {words}: data and "
                "model have different tokenizers. Give the data the model's own: tokenizer=..."
            )
        return model

    def write(self, method: Described, scores: Iterable[Mapping[str, np.ndarray]], **facts: Any) -> ScoreStore:
        """Write the store, query by query, so that no more than a column of each kind need be in memory.

        Args:
            scores: For each query in order, the scores ``[N]`` of each kind.
            facts: More for the manifest.
        """
        with self.claim(method):
            return self._write(method, iter(scores), facts)

    def claim(self, method: Described) -> AbstractContextManager[None]:
        """Claim the output folder for a method as long as the context is open: by one process of a job, for all."""
        return claimed(
            self.output_dir, f"the method {method.name}", by_this_process=not getattr(rank_zero_only, "rank", 0)
        )

    def _write(
        self, method: Described, columns: Iterator[Mapping[str, np.ndarray]], facts: Mapping[str, Any]
    ) -> ScoreStore:
        first = next(columns)
        dtype = np.result_type(np.float32, *first.values()) if first else np.float32
        with ScoreWriter(self.output_dir, self.examples, self.queries, list(first), dtype) as writer:
            count = 0
            each = track(chain([first], columns), method.name, len(self.queries))
            for count, of_query in enumerate(each, start=1):
                for kind, values in of_query.items():
                    writer.put(kind, values, columns=count - 1)
            assert count == len(self.queries), "one column for each query"
            return writer.finish(
                {
                    **self.describe(method),
                    **facts,
                    "seconds": round(time.perf_counter() - self.started, 3),
                    "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
                },
                *self.texts(),
            )

    def describe(self, method: Described) -> dict[str, Any]:
        """Describe a method and its task, for a manifest."""
        facts = {"method": method.name, "class": full_name(method), "options": method.options()}
        return {**facts, **self.manifest}


def choose_named(what: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Choose some of the known names, in the order of the known; None: all.

    Raises:
        ValueError: If one is not known.
    """
    for name in wanted or ():
        if name not in known:
            raise ValueError(f"{what}: no {name!r}. {nearest(name, known)}")
    if wanted is not None and not wanted:
        raise ValueError(f"{what}: expected at least one, found none")
    return [name for name in known if wanted is None or name in wanted]


def peak_memory_bytes(device: torch.device) -> int:
    """Measure the peak memory of this process: on a GPU, of what torch allocates there, otherwise resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _rows(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
