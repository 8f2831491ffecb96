"""Is tracing right on a GPU, and what does it cost there? One prepared run of at most eight minutes.

    python benchmarks/gpu.py                                  # the whole run
    python benchmarks/gpu.py --parts exactness,online --minutes 5
    python benchmarks/gpu.py --device cpu --tiny              # rehearse: the same code, small, without a GPU

Each part runs in a process of its own and has its share of the time that is left: one that fails, hangs or runs out of
memory is written down with the end of its traceback, and the next one goes on; one for which too little time is left is
skipped, and says so. What was found is written into ``gpu.json`` and ``gpu.md`` after each line of a table, so that a
run that is cut keeps what it has. The exit code is 1 if a check is WRONG, or a part failed or was stopped.

    exactness   small models (GPT-2, Llama, T5, LoRA): scores, rows of an index, resumed runs, skipped steps of the loss
                scaler, compiled models and causal grids beside those of the CPU, weights beside those of plain training
    online      GPT-2 (124M) in bf16-mixed: milliseconds a step beside plain training and its floor, peak memory
    profile     launches a step, the GPU's idle share, the longest kernels, operators and Python functions
    lora        a Llama of a billion weights in bfloat16 whose adapters are trained and traced
    causal      grids per second on GPT-2, beside a forward pass per cell
    search      ten gigabytes of rows
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from gpu_parts.causal_grids import causal
from gpu_parts.exactness import exactness
from gpu_parts.findings import Finding, Report
from gpu_parts.lora import lora
from gpu_parts.online_costs import online
from gpu_parts.profiles import profile
from gpu_parts.running import Given, Part, run_parts
from gpu_parts.stored_search import search
from rich.console import Console

PARTS = {
    part.name: part
    for part in (
        Part("exactness", 105, exactness), Part("online", 120, online), Part("profile", 75, profile),
        Part("lora", 75, lora), Part("causal", 25, causal), Part("search", 75, search),
    )
}  # fmt: skip
PACKAGES = ("torch", "lightning", "transformers", "peft", "triton")


def machine(given: Given) -> Iterator[Finding]:
    """Say which card, as this process itself never asks CUDA."""
    if given.device == "cpu":
        yield Finding("device", {"": f"CPU, {torch.get_num_threads()} threads"})
        return
    properties = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    yield Finding("device", {"": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"})
    yield Finding("driver, clock, power", {"": driver or "unknown"})
    yield Finding("CUDA of PyTorch", {"": torch.version.cuda or "none"})


def main() -> int:
    """Run the parts, and say how they went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="Small sizes, to see that it runs: figures mean nothing.")
    parser.add_argument("--parts", default=",".join(PARTS), help="Separated by commas; default: all.")
    parser.add_argument("--minutes", type=float, default=8.0, help="Of the whole run.")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "gpu_results")), help="Default: $OUT, or gpu_results."
    )
    parser.add_argument(
        "--start",
        choices=["fork", "spawn"],
        help="How parts' processes begin. Default: spawn; on a CPU fork, which is quick.",
    )
    options = parser.parse_args()
    unknown = sorted(set(options.parts.split(",")) - set(PARTS))
    if unknown:
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, found {', '.join(unknown)}")
    console = Console(markup=False, highlight=False, width=140)
    report = Report(options.out, shlex.join(["python", *sys.argv]))
    report.about["begun"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    report.about |= {name: _version(name) for name in PACKAGES}
    parts = [Part("machine", 10, machine), *(PARTS[name] for name in options.parts.split(","))]
    run_parts(
        parts, report, device=options.device, tiny=options.tiny, seconds=60 * options.minutes, console=console,
        method=options.start or ("spawn" if options.device == "cuda" else "fork"),
    )  # fmt: skip
    console.print(f"written: {options.out / 'gpu.json'}, {options.out / 'gpu.md'}")
    return 0 if all(part.is_right for part in report.parts.values()) else 1


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
