"""Files of a run's state, beside the user's checkpoints.

A checkpoint holds only their names and hashes. Each process writes its part to a file of its own, whose name contains
step and hash, under a temporary name first. All content is numbers, text, lists, dictionaries and tensors, so that it
loads with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ftrace.files.whole_files import put_file, temporary_file
from ftrace.gradients import Dense, Elementwise, Lookup, Outer, ParameterStep, PerExampleGradients, RankOne
from ftrace.online.queries.query_pass import Refresh
from ftrace.online.scoring.contributions import Contribution, Moment, Share, StepTaken
from ftrace.online.scoring.momentum import HeldStep
from ftrace.scores import Sum

_TUPLES = {kind.__name__: kind for kind in (Share, Sum)}
_DATACLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Contribution, Dense, Elementwise, HeldStep, Lookup, Moment, Outer, ParameterStep, RankOne, Refresh, StepTaken,
    )
}  # fmt: skip


def pack(value: Any) -> Any:
    """Convert a value of ours to plain lists, dictionaries and tensors."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        is_view = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
        return tensor.clone() if is_view else tensor  # a file gets the whole storage
    if kind in _TUPLES:
        return {"kind": kind, "values": list(value)}
    if kind in _DATACLASSES:
        return {"kind": kind, "values": {f.name: pack(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, PerExampleGradients):
        inner = {"parts": value.parts, "shapes": value.shapes, "num_examples": len(value), "scales": value.scales}
        return {"kind": "PerExampleGradients", "values": pack(inner)}
    if isinstance(value, Mapping):
        return {"kind": "dict", "values": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, torch.Size):
        return {"kind": "Size", "values": list(value)}
    if isinstance(value, list | tuple):
        return {"kind": type(value).__name__, "values": [pack(item) for item in value]}
    return value


def unpack(value: Any, device: torch.device | None) -> Any:
    """Restore what :func:`pack` was given, with tensors copied to a device; None leaves them where they are."""
    if isinstance(value, Tensor):
        return value if device is None else value.to(device, copy=True)
    if not isinstance(value, dict):
        return value
    kind, values = value["kind"], value["values"]
    if kind in _TUPLES:
        return _TUPLES[kind](*values)
    if kind in _DATACLASSES:
        return _DATACLASSES[kind](**{name: unpack(item, device) for name, item in values.items()})
    if kind == "PerExampleGradients":
        inner = unpack(values, device)
        parts = {name: list(of_name) for name, of_name in inner["parts"].items()}
        return PerExampleGradients(parts, inner["shapes"], inner["num_examples"], inner["scales"])
    if kind == "dict":
        return {unpack(key, device): unpack(item, device) for key, item in values}
    if kind == "Size":
        return torch.Size(values)
    items = [unpack(item, device) for item in values]
    return tuple(items) if kind == "tuple" else items


def write_state(folder: Path, step: int, rank: int, state: Mapping[str, Any]) -> dict[str, str]:
    """Write one process's part.

    Args:
        folder: Of the state files.
        step: Of the state.
        rank: Of the process.
        state: What to write. Its entry "sums", which may be larger than memory, is not copied.

    Returns:
        The file's path and its SHA-256.
    """
    rest = {name: value for name, value in state.items() if name != "sums"}
    content = {"sums": pack(state["sums"]), "rest": pack(rest)}
    name = f"step-{step:08d}-process-{rank}"
    return write_hashed(folder, name, ".pt", lambda temporary: torch.save(content, temporary))


def write_hashed(folder: Path, name: str, ending: str, write: Callable[[Path], None]) -> dict[str, str]:
    """Write a file whose name contains the hash of its content.

    Args:
        folder: Made, if it is missing.
        name: The beginning of the file's name.
        ending: Its end.
        write: Writes the content to a file.

    Returns:
        The file's path and its SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_file(folder / name) as temporary:
        write(temporary)
        digest = _sha256(temporary)
        file = folder / f"{name}-{digest[:12]}{ending}"
        put_file(temporary, file)
    return {"file": str(file), "sha256": digest}


def read_state(entry: Mapping[str, str], fallback: Path, device: torch.device, who: str) -> Any:
    """Read one process's part.

    Args:
        entry: The entry that :func:`write_state` returned.
        fallback: The folder to search if the file isn't where it was written, since folders may be moved.
        device: The device of the tensors; those of "sums" stay in the file, which is mapped.
        who: Whose messages these are.

    Raises:
        ValueError: If the file is missing, or not the one that was written.
    """
    file = find_hashed(entry, fallback, "scores", who)
    content = torch.load(file, weights_only=True, mmap=True)
    return {**unpack(content["rest"], device), "sums": unpack(content["sums"], None)}


def find_hashed(entry: Mapping[str, str], fallback: Path, what: str, who: str) -> Path:
    """Find a file that :func:`write_hashed` has written.

    Args:
        entry: The entry that it returned.
        fallback: As in :func:`read_state`.
        what: What the file holds, for messages.
        who: Whose messages these are.

    Raises:
        ValueError: If the file is missing, or not the one that was written.
    """
    file = Path(entry["file"])
    if not file.exists():
        file = fallback / file.name
    remedy = "Put it back, resume from another checkpoint, or train from the start"
    if not file.exists():
        raise ValueError(
            f"{who}: the checkpoint's {what} are missing: expected {entry['file']!r} or {str(file)!r}. {remedy}"
        )
    if _sha256(file) != entry["sha256"]:
        raise ValueError(
            f"{who}: {str(file)!r} is damaged: its SHA-256 is not the one that the checkpoint has. {remedy}"
        )
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
