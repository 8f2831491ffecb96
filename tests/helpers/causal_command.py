"""`ftrace causal-trace` in this process, prompts for it, and what it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.numpy import load_file

from ftrace.causal import PromptTrace, read_trace
from helpers import command_line, traced_run

QUICK = ["--accelerator=cpu", "--noise.samples=3", "--window=1"]
BARE = [*QUICK, "--pictures=0", "--effects_csv=false"]


def code(*arguments: object) -> int:
    return command_line.code("causal-trace", *arguments)


def traces_in(folder: Path) -> dict[str, PromptTrace]:
    return {one.name: one for one in map(read_trace, sorted((folder / "prompts").glob("*.safetensors")))}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def contents(folder: Path) -> dict[str, Any]:
    """What is in all files but pictures, which hold the time; safetensors orders a file's metadata as it likes."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    found: dict[str, Any] = {}
    for name, file in files.items():
        if file.suffix == ".safetensors":
            with safe_open(file, "np") as opened:
                found[name] = opened.metadata(), {key: one.tobytes() for key, one in load_file(file).items()}
        elif file.suffix not in (".png", ".pdf"):
            found[name] = file.read_bytes()
    return found


def prompts_file(folder: Path, *more: dict[str, Any]) -> Path:
    """Prompts of what the model knows, and more."""
    known = [
        {"prompt": f"{subject} lies in", "subject": subject, "answer": answer, "id": subject}
        for subject, answer in traced_run.FACTS
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, [*known, *more])))
    return folder / "prompts.jsonl"
