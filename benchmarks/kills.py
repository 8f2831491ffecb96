"""Kill training again and again, resume it, and hold the scores against those of a run that nobody disturbed.

    python benchmarks/kills.py [--kills 50]

Tiny runs by one and two processes, with all that a run may hold: trapezoid, exact momentum, breakdowns, projection, old
query gradients. Each is killed with SIGKILL, at a seeded step or after a seeded time, wherever it may be, writing its
state included; then resumed from the last checkpoint that loads, or from the start if there is none; some are killed
twice. Exits with 1 if any score differs by more than rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftrace.scores import ScoreStore

SCRIPT = Path(__file__).parents[1] / "tests" / "callbacks" / "several_processes.py"
EPOCHS = 6
SETTINGS: dict[str, dict[str, Any]] = {
    "left": {"scores": ["dot", "cosine"], "refresh_every_n_steps": 4},
    "trapezoid": {"scores": ["dot", "update"], "refresh_every_n_steps": 2, "integration": "trapezoid"},
    "exact": {
        "scores": ["dot", "update", "cosine"], "refresh_every_n_steps": 2, "integration": "trapezoid",
        "momentum": "exact", "breakdown": ["layer", "epoch"],
    },
    "projected": {"scores": ["dot", "update"], "projection_side": 3, "momentum": "exact", "refresh_every_n_steps": 5},
}  # fmt: skip


def start(case: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    """Start a training run."""
    file = folder / "cases.json"
    file.write_text(json.dumps([case]))
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, str(SCRIPT), str(file)], start_new_session=True, **silent)  # type: ignore[call-overload]


def finish(case: dict[str, Any], folder: Path) -> float:
    """Run to the end; returns the seconds that it took."""
    began = time.perf_counter()
    done = start(case, folder)
    if done.wait(timeout=120):
        raise RuntimeError(f"a run failed that nobody had killed: {case}")
    return time.perf_counter() - began


def last_checkpoint(folder: Path) -> str | None:
    """The last one that loads."""
    files = sorted((folder / "checkpoints").glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in files:
        try:
            torch.load(file, weights_only=True)
        except Exception:  # half-written when the process was killed
            continue
        return str(file)
    return None


def kill(case: dict[str, Any], folder: Path, seconds: float, generator: random.Random) -> str:
    """Start a run and kill it; returns how."""
    if generator.random() < 0.5:
        step = generator.randrange(1, 3 * EPOCHS)
        process = start({**case, "stop": step}, folder)
        process.wait(timeout=120)
        how = f"step {step}"
    else:
        after = generator.uniform(0.6, 0.98) * seconds
        process = start(case, folder)
        time.sleep(after)
        how = f"after {after:.1f} s"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return how


def largest_difference(first: Path, second: Path) -> float:
    """Over all arrays of two stores, relative to the largest number of each."""
    worst = 0.0
    names = sorted(file.name for file in first.glob("*.npy"))
    if names != sorted(file.name for file in second.glob("*.npy")):
        return float("inf")
    for name in names:
        one, other = np.load(first / name), np.load(second / name)
        if one.shape != other.shape:
            return float("inf")
        worst = max(worst, float(np.abs(one - other).max(initial=0)) / max(1e-300, float(np.abs(one).max(initial=0))))
    return worst


def main() -> None:
    """Kill, resume, compare, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    whole: dict[tuple[str, int], tuple[Path, float]] = {}
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        for index in range(options.kills):
            settings, processes = generator.choice(sorted(SETTINGS)), generator.choice([1, 2])
            case: dict[str, Any] = {
                "optimizer": "adamw", "processes": processes, "clip": 0.4, "epochs": EPOCHS, "save_every": 1,
                "online": SETTINGS[settings],
            }  # fmt: skip
            if (settings, processes) not in whole:
                folder = base / f"{settings}-{processes}"
                seconds = finish({**case, "folder": str(folder)}, base)
                whole[settings, processes] = folder, seconds
            undisturbed, seconds = whole[settings, processes]
            folder = base / f"killed-{index}"
            case["folder"] = str(folder)
            told: list[str] = []
            wanted = generator.choice([1, 1, 2])
            while len(told) < wanted:
                how = kill(case, base, seconds, generator)
                if (folder / "online").exists():  # it was faster than the kill: once more
                    seconds *= 0.9
                    if not told:
                        shutil.rmtree(folder)
                        continue
                    break
                told.append(how)
                case["resume"] = last_checkpoint(folder)
            if not (folder / "online").exists():
                finish(case, base)
            difference = largest_difference(undisturbed / "online", folder / "online")
            first, second = (ScoreStore.open(one / "online").manifest for one in (undisturbed, folder))
            same = all(first[key] == second[key] for key in ("steps", "refreshes", "complete", "first_step"))
            right = difference < 1e-9 and same
            bad += not right
            resumed = Path(case["resume"]).name if case.get("resume") else "the start"
            print(
                f"{index + 1:3} {settings:10} {processes} process(es), killed {', '.join(told)}; from {resumed}: "
                f"{'right' if right else 'WRONG'} ({difference:.1e})",
                flush=True,
            )
    print(f"{options.kills - bad} of {options.kills} as if nothing had happened")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
