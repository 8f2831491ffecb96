"""Training and scoring of all runs of a study. What is already done is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml
from lightning.pytorch.utilities import rank_zero_info

from ftrace.arguments import Positive, checked
from ftrace.attribution import Ensemble
from ftrace.commands.method_tasks import make_task
from ftrace.evaluation.files import replace_text
from ftrace.files.claims import claimed
from ftrace.files.manifests import DIGEST, read_json, write_json
from ftrace.gradients import full_name
from ftrace.progress import progress
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from ftrace.shown_text import plain
from ftrace.studies.settings import Study

_SECONDS_TO_END = 10.0  # of a training that is interrupted


class _Cost(TypedDict):
    seconds: float
    cpu_seconds: NotRequired[float]


@dataclass(frozen=True)
class StudyRun:
    """One training of a study.

    Args:
        variant: The variant's name.
        seed: The training's seed.
        folder: The folder of logs, snapshots and score stores.
    """

    variant: str
    seed: int
    folder: Path

    @property
    def config(self) -> Path:
        """The file of the training's config."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def cost(self) -> dict[str, Any]:
        """The training's time: "seconds" and, if the system tells, "cpu_seconds" of all its threads."""
        return read_json(self.folder / "training.json", _Cost, digest=False)  # of an older ftrace, it has none

    def stores(self, study: Study) -> dict[str, ScoreStore]:
        """Open the run's score stores, the online one first."""
        return {name: ScoreStore.open(self.folder / name) for name in ("online", *study.methods)}


@checked
def do_study(study: Study, output_dir: Path, train_script: Path | None = None, jobs: Positive = 1) -> list[StudyRun]:
    """Train and score all runs.

    Args:
        study: The study.
        output_dir: The folder of the runs, which are VARIANT/seed-SEED in it. Studies that share the folder share runs
            of the same settings.
        train_script: A script to train with, which takes the same arguments; default: ``ftrace`` itself.
        jobs: How many trainings to run at a time. Each gets an equal number of cores, or as many threads as
            OMP_NUM_THREADS says.

    Raises:
        ValueError: If a training fails. Finished ones are kept.
    """
    if train_script is not None and not train_script.is_file():
        raise ValueError(f"train_script: expected a script, found nothing at {str(train_script)!r}. Leave it out")
    runs = [
        StudyRun(variant, seed, (output_dir / variant / f"seed-{seed}").absolute())
        for seed in study.seeds
        for variant in study.variants
    ]
    trainings = _Trainings()
    with progress("Training", len(runs)) as advance, ThreadPoolExecutor(jobs) as pool:

        def train(run: StudyRun) -> None:
            _train(study, run, train_script, max(1, (os.cpu_count() or 1) // jobs), trainings)
            advance()

        try:
            list(pool.map(train, runs))  # raises the error of a training
        except Exception:
            raise  # the trainings that are under way are finished, and kept
        except BaseException:
            trainings.interrupt()
            raise
    for run in runs:
        opened = Run(run.folder, trust=True)  # trained here, by the user's config
        some_are_new = False
        for name, method in study.methods.items():
            folder, asked = run.folder / name, {"method": full_name(method), **method.options()}
            is_stale = some_are_new and isinstance(method, Ensemble)  # stores that it combines may have changed
            if is_stale or not _is_done(folder, asked):
                rank_zero_info(f"{plain(run.variant)}, seed {run.seed}: {name}")
                method.score(make_task(opened, folder))
                write_json(folder.with_name(f"{name}.json"), asked)
                some_are_new = True
    return runs


class _Trainings:
    """The trainings that are under way in this process's threads."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._is_interrupted = False

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a training.

        Raises:
            ValueError: If all of them have been interrupted.
        """
        with self._lock:
            if self._is_interrupted:
                raise ValueError("the study was interrupted")
            self._processes.append(subprocess.Popen(command, **options))
            return self._processes[-1]

    def interrupt(self) -> None:
        """End all trainings, and let no other begin; those that don't end are killed."""
        with self._lock:
            self._is_interrupted = True
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + _SECONDS_TO_END
        while any(process.poll() is None for process in self._processes) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in self._processes:
            process.kill()


def _is_done(folder: Path, options: object) -> bool:
    """Return whether a complete store is there, of a method with these options."""
    noted = folder.with_name(f"{folder.name}.json")
    try:
        ScoreStore.open(folder).check()
        known = read_json(noted, dict[str, Any], digest=False)
        known.pop(DIGEST, None)
        return bool(known == json.loads(json.dumps(options)))
    except (OSError, ValueError):
        return False


def _train(study: Study, run: StudyRun, train_script: Path | None, threads: int, trainings: _Trainings) -> None:
    with claimed(run.config, "ftrace study"):  # another study may share the run
        _train_alone(study, run, train_script, threads, trainings)


def _train_alone(study: Study, run: StudyRun, train_script: Path | None, threads: int, trainings: _Trainings) -> None:
    settings = study.variants[run.variant].settings(study)
    settings["seed_everything"] = run.seed
    synth = settings["data"].get("init_args", {}).get("synth")
    if isinstance(synth, dict):
        synth["seed"] = run.seed
    logger = {"save_dir": str(run.folder.parent.parent), "name": run.variant, "version": run.folder.name}
    settings["trainer"]["logger"] = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}
    settings["trainer"]["enable_progress_bar"] = False
    text = yaml.safe_dump(settings, sort_keys=False)
    done, config = run.folder / "training.json", run.config
    if done.exists() and config.exists() and config.read_text() == text:
        return
    config.parent.mkdir(parents=True, exist_ok=True)
    if run.folder.exists():  # a run of other settings, or an unfinished one
        aside = run.folder.with_name(f"{run.folder.name}-{int(time.time())}")
        with claimed(run.folder, "ftrace study"):  # its training may have outlived the study that began it
            run.folder.rename(aside)
    replace_text(config, text)
    log = run.folder.with_name(f"{run.folder.name}.log")
    started = time.perf_counter()
    with log.open("w") as stream:
        trainer = ["-m", "ftrace.cli"] if train_script is None else [str(train_script)]
        command = [sys.executable, *trainer, "fit", "--config", str(config)]
        given = os.environ.get("OMP_NUM_THREADS") or str(threads)
        environment = {**os.environ, "OMP_NUM_THREADS": given}
        process = trainings.start(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        code, used = _wait(process)
    if code:
        raise ValueError(f"training {run.variant} with seed {run.seed} failed: see {log}")
    cost = {"seconds": time.perf_counter() - started, "threads": given, **used}
    write_json(done, cost)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, dict[str, float]]:
    """Wait for a process; return its exit code and, if the system tells, its CPU seconds."""
    if not hasattr(os, "wait4"):
        return process.wait(), {}
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except ChildProcessError:  # if SIGCHLD is ignored
        return process.wait(), {}
    except BaseException:
        process.kill()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, {"cpu_seconds": usage.ru_utime + usage.ru_stime}
