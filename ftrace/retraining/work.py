"""Many retrainings: what each gave is a small file, and what is there is not done again."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from rich.progress import Progress

from ftrace.evaluation.files import replace_text
from ftrace.retraining.retrainer import Budget, QueryOutcome, Retrainer
from ftrace.runs import Run

FORMAT, VERSION = "ftrace-counterfactual", 1


@dataclass(frozen=True)
class Retraining:
    """One training to be done.

    Args:
        name: Of its file, without ending.
        left_out: Ids of the training rows that are left out, ascending.
        order_seed: Of the rows' order; None: the run's own order.
    """

    name: str
    left_out: tuple[int, ...]
    order_seed: int | None = None

    @property
    def key(self) -> str:
        """Of the rows that are left out and their order: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.left_out, self.order_seed]).encode()).hexdigest()[:16]


def without(left_out: Sequence[int] | np.ndarray) -> Retraining:
    """The run, but for some of its rows, in its own order; the same rows have the same name."""
    rows = tuple(np.unique(np.asarray(left_out, dtype=np.int64)).tolist())
    return Retraining(f"without-{Retraining('', rows).key}", rows)


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note what the outcomes in a folder are of, and refuse a folder that holds others.

    Raises:
        ValueError: If its manifest tells of other settings, or can't be read.
    """
    file = folder / "manifest.json"
    said = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **settings}))
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(said, indent=2) + "\n")
        return
    try:
        found = json.loads(file.read_text())
        names = [name for name in {**said, **found} if said.get(name) != found.get(name)]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: can't be read ({error}). Name another folder: --output_dir") from error
    if names:
        ours, theirs = ({name: one.get(name) for name in names} for one in (said, found))
        raise ValueError(f"{folder} holds retrainings with {theirs}, expected {ours}. Name another: --output_dir")


def do_retrainings(
    run: Run, retrainings: Sequence[Retraining], folder: Path, budget: Budget = "epochs", jobs: int = 1
) -> list[QueryOutcome]:
    """Train whatever has not been trained yet.

    Args:
        run: The run.
        retrainings: What to train; several of the same name are one.
        folder: Where the outcomes go, one file each, whole or not at all. What is there is not done again.
        budget: As :class:`Retrainer` has it.
        jobs: How many processes. Of several, each gets its share of the cores, or what OMP_NUM_THREADS says.

    Returns:
        What each model makes of the run's queries, in the order of ``retrainings``.

    Raises:
        ValueError: If a training fails, or a file is of another retraining; what is finished is kept.
    """
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, found {jobs}")
    retrainer = Retrainer(run, budget)  # finds out now what can't be trained
    folder.mkdir(parents=True, exist_ok=True)
    asked = {one.name: one for one in retrainings}
    query_ids = list(run.data.query_rows["query_id"])
    missing = [one for one in asked.values() if read_outcome(one, folder, query_ids) is None]
    with Progress() as progress:
        bar = progress.add_task("Retraining", total=len(asked), completed=len(asked) - len(missing))
        done = _in_processes(run, missing, folder, budget, jobs) if jobs > 1 else _here(retrainer, missing, folder)
        for _ in done:
            progress.advance(bar)
    found = {name: read_outcome(one, folder, query_ids) for name, one in asked.items()}
    lost = [name for name, outcome in found.items() if outcome is None]
    if lost:
        raise ValueError(f"{folder}: expected an outcome of each retraining, found none of {lost[:3]}")
    return [outcome for one in retrainings if (outcome := found[one.name]) is not None]


def retrain(retrainer: Retrainer, one: Retraining, folder: Path) -> None:
    """Train, and write what came of it."""
    started = perf_counter()
    is_kept = np.ones(len(retrainer.run.data.train_rows), dtype=bool)
    is_kept[list(one.left_out)] = False
    outcome = retrainer.query_outcome(is_kept, one.order_seed)
    found = {
        "key": one.key,
        "num_rows": int(is_kept.sum()),
        "seconds": round(perf_counter() - started, 2),
        "query_ids": list(retrainer.run.data.query_rows["query_id"]),
        "losses": [loss if math.isfinite(loss) else None for loss in outcome.losses.tolist()],  # JSON has no NaN
        "learned": outcome.learned.tolist(),
    }
    replace_text(folder / f"{one.name}.json", json.dumps(found, allow_nan=False) + "\n")


def read_outcome(one: Retraining, folder: Path, query_ids: Sequence[int]) -> QueryOutcome | None:
    """What came of a retraining; None if it has not been done.

    Raises:
        ValueError: If its file is of other rows, another order, or other queries.
    """
    file = folder / f"{one.name}.json"
    with suppress(OSError, json.JSONDecodeError):  # what can't be read is made anew
        found = json.loads(file.read_text())
        if found["key"] != one.key or found["query_ids"] != list(query_ids):
            raise ValueError(
                f"{file}: expected the outcome of another retraining (rows left out, their order, or queries differ). "
                "Name another folder"
            )
        return QueryOutcome(np.array(found["losses"], np.float32), np.array(found["learned"], bool))
    return None


def _here(retrainer: Retrainer, retrainings: Sequence[Retraining], folder: Path) -> Iterator[None]:
    for one in retrainings:
        retrain(retrainer, one, folder)
        yield


def _in_processes(
    run: Run, retrainings: Sequence[Retraining], folder: Path, budget: Budget, jobs: int
) -> Iterator[None]:
    """Share the work among processes: each gets the next retraining once it is done with one."""
    jobs = min(jobs, len(retrainings))
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def train(one: Retraining) -> None:
        worker = idle.get()
        try:
            worker.train(one)
        finally:
            idle.put(worker)

    with ExitStack() as stack:
        for number in range(jobs):
            threads = max(1, (os.cpu_count() or 1) // jobs)
            idle.put(stack.enter_context(_Worker(run, folder, budget, threads, folder / f"worker-{number}.log")))
        pool = stack.enter_context(ThreadPoolExecutor(max(1, jobs)))
        waiting = [pool.submit(train, one) for one in retrainings]
        try:
            for one in as_completed(waiting):
                one.result()
                yield
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """A process that trains what it is told, one at a time; see :mod:`ftrace.retraining.worker`."""

    def __init__(self, run: Run, folder: Path, budget: Budget, threads: int, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads)}
        command = [sys.executable, "-m", "ftrace.retraining.worker", str(run.folder), str(folder), budget]
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment, text=True
            )

    def train(self, one: Retraining) -> None:
        """Have a retraining done.

        Raises:
            ValueError: If the process fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        reply = ""
        with suppress(OSError):  # a pipe that is broken, because the process has ended
            self._process.stdin.write(json.dumps(asdict(one)) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        if reply.strip() != one.name:
            raise ValueError(f"retraining {one.name} failed: see {self._log}")

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()  # nothing is lost but what it has begun
        self._process.communicate()
