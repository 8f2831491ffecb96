"""Many retrainings. Each one's outcome is a small file, and outcomes that exist are not computed again."""

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
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from ftrace.arguments import Positive, checked
from ftrace.files.digests import DamagedError
from ftrace.files.manifests import DIGEST, Form, read_json, read_manifest, write_json, write_manifest
from ftrace.progress import progress
from ftrace.retraining.outcomes import Budget, QueryOutcome
from ftrace.runs import Run

if TYPE_CHECKING:
    from ftrace.retraining.retrainer import Retrainer


class _Outcome(TypedDict):
    key: str
    query_ids: list[int]
    losses: list[float | None]
    learned: list[bool]


FORM = Form("ftrace-counterfactual", 2, dict[str, Any], "a folder of retrainings")
_NOT_ASKED_FOR = ("format", "version", DIGEST)


@dataclass(frozen=True)
class Retraining:
    """One training to be done.

    Args:
        name: The name of the outcome's file, without its ending.
        left_out: Ids of the training rows that are left out, ascending.
        order_seed: The seed of the rows' order; None: the run's own order.
    """

    name: str
    left_out: tuple[int, ...]
    order_seed: int | None = None

    @property
    def key(self) -> str:
        """A hash of the rows that are left out and their order: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps([self.left_out, self.order_seed]).encode()).hexdigest()[:16]


@checked
def without(left_out: Sequence[int] | np.ndarray) -> Retraining:
    """Make the retraining without some rows, in the run's own order. The same rows give the same name."""
    rows = tuple(np.unique(np.asarray(left_out, dtype=np.int64)).tolist())
    return Retraining(f"without-{Retraining('', rows).key}", rows)


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in a folder which settings its outcomes belong to, and refuse a folder of other settings.

    Raises:
        ValueError: If the folder's manifest has other settings, or can't be read.
    """
    file = folder / "manifest.json"
    asked = json.loads(json.dumps(settings))
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_manifest(file, FORM, asked)
        return
    try:
        noted = read_manifest(file, FORM)
    except ValueError as error:
        raise type(error)(f"{error}. Name another folder: --output_dir") from error
    names = [name for name in {**asked, **noted} if name not in _NOT_ASKED_FOR and asked.get(name) != noted.get(name)]
    if names:
        ours, theirs = ({name: settings.get(name) for name in names} for settings in (asked, noted))
        raise ValueError(f"{folder} holds retrainings with {theirs}, expected {ours}. Name another: --output_dir")


@checked
def do_retrainings(
    run: Run, retrainings: Sequence[Retraining], folder: Path, budget: Budget = "epochs", jobs: Positive = 1
) -> list[QueryOutcome]:
    """Do the retrainings that have not been done yet.

    Args:
        retrainings: What to train; several of the same name are one.
        folder: The folder of the outcomes, one file each, written whole or not at all.
        budget: As :class:`Retrainer` takes it.
        jobs: How many processes to use. If there are several, each gets an equal number of cores, or as many threads as
            OMP_NUM_THREADS says.

    Returns:
        Each model's outcome on the run's queries, in the order of ``retrainings``.

    Raises:
        ValueError: If a training fails, or a file belongs to another retraining. Finished outcomes are kept.
    """
    from ftrace.retraining.retrainer import Retrainer  # imports torch

    retrainer = Retrainer(run, budget)  # raises now if the run can't be repeated
    folder.mkdir(parents=True, exist_ok=True)
    asked = {retraining.name: retraining for retraining in retrainings}
    query_ids = list(run.data.query_rows["query_id"])
    missing = [retraining for retraining in asked.values() if read_outcome(retraining, folder, query_ids) is None]
    with progress("Retraining", len(asked), len(asked) - len(missing)) as advance:
        done = _in_processes(run, missing, folder, budget, jobs) if jobs > 1 else _here(retrainer, missing, folder)
        for _ in done:
            advance()
    outcomes = {name: read_outcome(retraining, folder, query_ids) for name, retraining in asked.items()}
    lost = [name for name, outcome in outcomes.items() if outcome is None]
    if lost:
        raise ValueError(f"{folder}: expected an outcome of each retraining, found none of {lost[:3]}")
    return [outcome for retraining in retrainings if (outcome := outcomes[retraining.name]) is not None]


def retrain(retrainer: Retrainer, retraining: Retraining, folder: Path) -> None:
    """Train, and write the outcome."""
    started = perf_counter()
    is_kept = np.ones(len(retrainer.run.data.train_rows), dtype=bool)
    is_kept[list(retraining.left_out)] = False
    outcome = retrainer.query_outcome(is_kept, retraining.order_seed)
    facts = {
        "key": retraining.key,
        "num_rows": int(is_kept.sum()),
        "seconds": round(perf_counter() - started, 2),
        "query_ids": list(retrainer.run.data.query_rows["query_id"]),
        "losses": [loss if math.isfinite(loss) else None for loss in outcome.losses.tolist()],  # JSON has no NaN
        "learned": outcome.learned.tolist(),
    }
    write_json(folder / f"{retraining.name}.json", facts)


def read_outcome(retraining: Retraining, folder: Path, query_ids: Sequence[int]) -> QueryOutcome | None:
    """Read the outcome of a retraining; None if it has not been done.

    Raises:
        ValueError: If its file belongs to other rows, another order, or other queries.
    """
    file = folder / f"{retraining.name}.json"
    if file.is_dir():  # the outcome of a training could not take its place
        raise ValueError(f"{str(file)!r}: expected a file, found a folder. Move it, or name another folder")
    with suppress(OSError, DamagedError):  # a file that can't be read is made again
        facts = read_json(file, _Outcome, digest=False)  # of an older ftrace, it has none
        if facts["key"] != retraining.key or facts["query_ids"] != list(query_ids):
            raise ValueError(
                f"{file}: expected the outcome of another retraining (rows left out, their order, or queries differ). "
                "Name another folder"
            )
        if not len(facts["losses"]) == len(facts["learned"]) == len(facts["query_ids"]):
            return None
        return QueryOutcome(np.array(facts["losses"], np.float32), np.array(facts["learned"], bool))
    return None


def _here(retrainer: Retrainer, retrainings: Sequence[Retraining], folder: Path) -> Iterator[None]:
    for retraining in retrainings:
        retrain(retrainer, retraining, folder)
        yield


def _in_processes(
    run: Run, retrainings: Sequence[Retraining], folder: Path, budget: Budget, jobs: int
) -> Iterator[None]:
    """Distribute retrainings over processes: each gets the next one when it has finished its last."""
    jobs = min(jobs, len(retrainings))
    idle: SimpleQueue[_Worker] = SimpleQueue()

    def train(retraining: Retraining) -> None:
        worker = idle.get()
        try:
            worker.train(retraining)
        finally:
            idle.put(worker)

    with ExitStack() as stack:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        workers = [_Worker(run, folder, budget, threads, folder / f"worker-{number}.log") for number in range(jobs)]
        for worker in workers:
            idle.put(stack.enter_context(worker))
        pool = stack.enter_context(ThreadPoolExecutor(max(1, jobs)))
        waiting = [pool.submit(train, retraining) for retraining in retrainings]
        try:
            for finished in as_completed(waiting):
                finished.result()
                yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # or else the pool's threads would wait until they have finished
                worker.kill()
            raise


class _Worker:
    """A process that does one retraining at a time; see :mod:`ftrace.retraining.worker`."""

    def __init__(self, run: Run, folder: Path, budget: Budget, threads: int, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(threads)}
        trust = ["trust"] if run.trust else []
        command = [sys.executable, "-m", "ftrace.retraining.worker", str(run.folder), str(folder), budget, *trust]
        self._log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, env=environment, text=True
            )

    def train(self, retraining: Retraining) -> None:
        """Let the process do a retraining, and wait for it.

        Raises:
            ValueError: If the process fails.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        reply = ""
        with suppress(OSError):  # a broken pipe, because the process has ended
            self._process.stdin.write(json.dumps(asdict(retraining)) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        if reply.strip() != retraining.name:
            raise ValueError(f"retraining {retraining.name} failed: see {self._log}")

    def kill(self) -> None:
        """End the process; only the retraining that it is doing is lost."""
        self._process.kill()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self.kill()
        self._process.communicate()
