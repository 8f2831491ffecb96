"""Trainings that `faults.py` stops, by one and two processes, and resumes; held against undisturbed ones.

Tiny runs with all that a run may hold: trapezoid, exact momentum, breakdowns, projection, old query gradients. Each is
stopped by a signal, at a seeded step or after a seeded time, wherever it may be, writing its state included; then
resumed from the last checkpoint that loads, or from the start if there is none; some are stopped twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftrace.scores import ScoreStore

SCRIPT = Path(__file__).parents[1] / "tests" / "helpers" / "several_processes.py"
EPOCHS = 6
SECONDS_TO_END = 40.0  # after SIGTERM, on a machine that has other work
SETTINGS: dict[str, dict[str, Any]] = {
    "left": {"scores": ["dot", "cosine"], "refresh_every_n_steps": 4},
    "trapezoid": {"scores": ["dot", "update"], "refresh_every_n_steps": 2, "integration": "trapezoid"},
    "exact": {
        "scores": ["dot", "update", "cosine"], "refresh_every_n_steps": 2, "integration": "trapezoid",
        "momentum": "exact", "breakdown": ["layer", "epoch"],
    },
    "projected": {"scores": ["dot", "update"], "projection_side": 3, "momentum": "exact", "refresh_every_n_steps": 5},
}  # fmt: skip


@dataclass
class Resumes:
    """Trainings that are stopped and resumed.

    Args:
        scratch: Where their folders go.
        generator: Draws when and how they are stopped.
    """

    scratch: Path
    generator: random.Random
    undisturbed: dict[tuple[str, int], tuple[Path, float]] = field(default_factory=dict)
    count: int = 0

    def trial(self) -> str:
        """Stop a training and resume it; say what is wrong then, nothing if nothing is."""
        self.count += 1
        settings, processes = self.generator.choice(sorted(SETTINGS)), self.generator.choice([1, 2])
        case: dict[str, Any] = {
            "optimizer": "adamw", "processes": processes, "clip": 0.4, "epochs": EPOCHS, "save_every": 1,
            "online": SETTINGS[settings],
        }  # fmt: skip
        if (settings, processes) not in self.undisturbed:
            folder = self.scratch / f"{settings}-{processes}"
            self.undisturbed[settings, processes] = folder, self._finish({**case, "folder": str(folder)})
        whole, seconds = self.undisturbed[settings, processes]
        folder = self.scratch / f"stopped-{self.count}"
        case["folder"] = str(folder)
        told: list[str] = []
        wanted = self.generator.choice([1, 1, 2])
        while len(told) < wanted and not (folder / "online").exists():
            how, wrong = self._stop(case, seconds)
            if wrong:
                return f"{settings} {processes} process(es), {how}: {wrong}"
            told.append(how)
            case["resume"] = last_checkpoint(folder)
        if not (folder / "online").exists():
            self._finish(case)
        resumed = Path(case["resume"]).name if case.get("resume") else "the start"
        wrong = different(whole / "online", folder / "online")
        shutil.rmtree(folder)
        return wrong and f"{settings} {processes} process(es), {', '.join(told)}, resumed from {resumed}: {wrong}"

    def _start(self, case: dict[str, Any]) -> subprocess.Popen[bytes]:
        file = self.scratch / "cases.json"
        file.write_text(json.dumps([case]))
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, str(SCRIPT), str(file)], start_new_session=True, **silent)  # type: ignore[call-overload]

    def _finish(self, case: dict[str, Any]) -> float:
        """Train to the end; return the seconds that it took."""
        began = time.perf_counter()
        if self._start(case).wait(timeout=180):
            raise RuntimeError(f"a training failed that nobody had stopped: {case}")
        return time.perf_counter() - began

    def _stop(self, case: dict[str, Any], seconds: float) -> tuple[str, str]:
        """Start a training and stop it; return how, and what was wrong with its ending."""
        if self.generator.random() < 0.3:
            step = self.generator.randrange(1, 3 * EPOCHS)
            process = self._start({**case, "stop": step})
            process.wait(timeout=180)
            _kill_group(process)
            return f"killed at step {step}", ""
        after = self.generator.uniform(0.6, 0.98) * seconds
        number = self.generator.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
        whom = self.generator.choice(["all", "the first", "the last"])
        process = self._start(case)
        time.sleep(after)
        how = f"{number.name} to {whom} after {after:.1f} s"
        if number == signal.SIGKILL:
            _kill_group(process)
            return how, ""
        with contextlib.suppress(ProcessLookupError):
            if whom == "all":
                os.killpg(process.pid, number)
            else:
                os.kill(process.pid if whom == "the first" else _last_child(process.pid), number)
        began = time.perf_counter()
        while process.poll() is None or _children(process.pid):
            time.sleep(0.1)
            if time.perf_counter() > began + SECONDS_TO_END:
                _kill_group(process)
                return how, f"not all processes had ended {SECONDS_TO_END:.0f} s later"
        return f"{how}, ended in {time.perf_counter() - began:.1f} s", ""


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _children(group: int) -> list[int]:
    """List the processes of a group that are alive, but for its first."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and int(entry.name) != group and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def _last_child(group: int) -> int:
    return max(_children(group), default=group)


def last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint that loads."""
    files = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in files:
        try:
            torch.load(file, weights_only=True)
        except Exception:  # half-written when the process was killed
            continue
        return str(file)
    return None


def different(first: Path, second: Path) -> str:
    """Say what differs between two stores by more than rounding."""
    names = sorted(file.name for file in first.glob("*.npy"))
    if names != sorted(file.name for file in second.glob("*.npy")):
        return "it has other files"
    for name in names:
        one, other = np.load(first / name), np.load(second / name)
        largest = max(1e-300, float(np.abs(one).max(initial=0)))
        if one.shape != other.shape or float(np.abs(one - other).max(initial=0)) / largest >= 1e-9:
            return f"{name} is different"
    manifests = [ScoreStore.open(folder).manifest for folder in (first, second)]
    for key in ("steps", "refreshes", "complete", "first_step"):
        if manifests[0][key] != manifests[1][key]:
            return f"{key} in its manifest is different"
    return ""
