"""What causal tracing found, on disk: one file for each prompt, written whole or not at all.

``FOLDER/prompts/NAME.safetensors`` holds the numbers, all float64: ``clean [O]``, ``corrupted [O]`` and, for each stack
and mediator, ``decoder/hidden/restored [O, L, T]`` and ``decoder/hidden/spread [O, L, T]``; outcomes O are in the order
of :data:`~ftrace.causal.prompt_trace.OUTCOMES`. ``safetensors.numpy.load_file`` reads them. Its metadata hold the rest
as JSON: ``trace`` (tokens, the subject's place, texts, status, rank) and ``settings`` (how it was traced).
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ftrace.causal.prompt_trace import OUTCOMES, PromptTrace, Stack, StackTrace
from ftrace.whole_files import whole_file

FORMAT = "ftrace-prompt-trace"
VERSION = 1
_FOLDER = "prompts"
_ENDING = ".safetensors"
_SAFE = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,79}")
_KINDS = ("restored", "spread")
_TEXTS = (
    "name", "status", "reason", "prompt", "subject", "answers", "fact", "query_id", "rank", "answer_tokens",
    "foil_token", "sigma",
)  # fmt: skip


def trace_file(folder: Path, name: str) -> Path:
    """Where a prompt's trace is.

    A name of lower-case letters, digits, ``.``, ``_`` and ``-`` is the file's name. Of any other name, what file
    systems take is kept, and ``~`` and a hash of the name are added: names that differ in case or in signs alone are
    different files everywhere.

    Args:
        folder: Of the traces.
        name: The prompt's name.

    Raises:
        ValueError: If the name is empty.

    Example:
        >>> trace_file(Path("traces"), "known_17").name, trace_file(Path("traces"), "Mont Blanc/1").name
        ('known_17.safetensors', 'mont-blanc-1~eefac790e231.safetensors')
    """
    if not name:
        raise ValueError("expected a prompt's name, found an empty one: name each prompt in the file of prompts")
    if not _SAFE.fullmatch(name):
        kept = re.sub(r"[^a-z0-9_]+", "-", name.lower())[:60].strip("-")
        name = f"{kept}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
    return folder / _FOLDER / f"{name}{_ENDING}"


def write_trace(folder: Path, trace: PromptTrace, settings: Mapping[str, Any]) -> Path:
    """Write a prompt's trace, whole or not at all; an earlier one of the prompt is replaced.

    Args:
        folder: Of the traces; folders that are missing are made.
        trace: What was found.
        settings: How it was traced: what JSON can hold, the same for all prompts of a folder.

    Returns:
        The file.

    Raises:
        ValueError: If grids have another shape than the tokens and outcomes say, a prompt that was traced has none or
            one that was not has some, or settings are not what JSON can hold.
    """
    tensors = _tensors(trace)
    about: dict[str, Any] = {name: getattr(trace, name) for name in _TEXTS}
    about["outcomes"] = list(OUTCOMES)
    about["stacks"] = {
        stack: {"tokens": own.tokens, "subject": [int(place) for place in own.subject], "mediators": list(own.restored)}
        for stack, own in trace.stacks.items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "trace": json.dumps(about),
        "settings": _settings_as_json(settings),
    }
    metadata["checksum"] = str(_checksum(tensors, metadata))
    file = trace_file(folder, trace.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        save_file(tensors, temporary, metadata)
    return file


def _settings_as_json(settings: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(settings), allow_nan=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected settings that JSON can hold, found {dict(settings)!r} ({error}): give numbers, texts and lists"
        ) from error


def _tensors(trace: PromptTrace) -> dict[str, np.ndarray]:
    """All numbers of a trace by their names on disk, checked."""
    if (trace.status == "traced") != bool(trace.stacks):
        raise ValueError(
            f"expected grids of a prompt that was traced and of no other, found {len(trace.stacks)} stacks of prompt "
            f"{trace.name!r}, whose status is {trace.status!r}"
        )
    found = {name: _array(trace, name, getattr(trace, name), (len(OUTCOMES),)) for name in ("clean", "corrupted")}
    for stack, own in trace.stacks.items():
        if not own.restored or own.restored.keys() != own.spread.keys():
            raise ValueError(
                f"expected some mediators and the spread of each, found {list(own.restored)} restored and spreads of "
                f"{list(own.spread)} in the {stack} of prompt {trace.name!r}"
            )
        layers = next((np.shape(grid)[1] for grid in own.restored.values() if np.ndim(grid) == 3), 0)
        for mediator in own.restored:
            for kind in _KINDS:
                name = f"{stack}/{mediator}/{kind}"
                shape = (len(OUTCOMES), layers, len(own.tokens))
                found[name] = _array(trace, name, getattr(own, kind)[mediator], shape)
    return found


def _array(trace: PromptTrace, name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(values) != shape or values.dtype != np.float64:
        raise ValueError(
            f"expected {name} of prompt {trace.name!r} as float64 of shape {shape} (outcomes, layers, tokens), found "
            f"{values.dtype} of shape {np.shape(values)}"
        )
    return np.ascontiguousarray(values)  # safetensors writes other layouts in the wrong order


def _checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> int:
    found = zlib.crc32("\n".join([metadata["trace"], metadata["settings"], *sorted(tensors)]).encode())
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].tobytes(), found)
    return found


def read_trace(file: Path) -> PromptTrace:
    """Read a prompt's trace.

    Raises:
        ValueError: If the file is missing, damaged, or none of ours.
    """
    return _read(file)[0]


def read_settings(file: Path) -> dict[str, Any]:
    """How a prompt was traced, as JSON has it.

    Raises:
        ValueError: If the file is missing, damaged, or none of ours.
    """
    return _read(file)[1]


def read_traces(folder: Path) -> list[PromptTrace]:
    """Read all prompts' traces of a folder, in the order of their files' names, numbers in them by size.

    Raises:
        ValueError: If there are none, one of them can't be read, or two were traced with different settings.
    """
    files = sorted((folder / _FOLDER).glob(f"*{_ENDING}"), key=_order)
    if not files:
        raise ValueError(
            f"expected traces in {str(folder / _FOLDER)!r}, found none: give a folder that ftrace causal-trace wrote"
        )
    found = [_read(file) for file in files]
    for file, (_, settings) in zip(files, found, strict=True):
        if settings != found[0][1]:
            names = sorted(settings.keys() | found[0][1].keys())
            differ = [one for one in names if settings.get(one) != found[0][1].get(one)]
            raise ValueError(
                f"expected one folder's prompts to be traced in the same way, found {differ} to differ between "
                f"{files[0].name} ({[found[0][1].get(one) for one in differ]}) and {file.name} "
                f"({[settings.get(one) for one in differ]}): trace each with settings of its own into its own folder"
            )
    return [trace for trace, _ in found]


def find_trace(folder: Path, name: str) -> PromptTrace:
    """Read the trace of one prompt.

    Raises:
        ValueError: If the folder has none of that name, or it can't be read.
    """
    file = trace_file(folder, name)
    if not file.exists():
        some = [read_trace(one).name for one in sorted((folder / _FOLDER).glob(f"*{_ENDING}"), key=_order)[:3]]
        known = f"it has {', '.join(map(repr, some))}, ..." if some else "it has no traces"
        raise ValueError(f"expected a prompt that was traced into {str(folder)!r}, found {name!r}: {known}")
    return read_trace(file)


def _order(file: Path) -> list[str | int]:
    """Text and numbers by turns, so that prompt 2 comes before prompt 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", file.stem))]


def _read(file: Path) -> tuple[PromptTrace, dict[str, Any]]:
    try:
        with safe_open(file, "np") as opened:
            metadata = opened.metadata() or {}
            names = list(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise _damaged(file, error) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"expected the trace of a prompt in {str(file)!r}, found a safetensors file of something else: "
            "move it out of the folder of traces"
        )
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"expected a trace in version {VERSION} of its format in {str(file)!r}, found version "
            f"{metadata.get('version')!r}: read it with the release of ftrace that wrote it, or trace the prompt again"
        )
    try:
        whole = int(metadata["checksum"]) == _checksum(tensors, metadata)
        found = _trace(json.loads(metadata["trace"]), tensors), json.loads(metadata["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error
    if not whole:
        raise _damaged(file, "its content is not what was written: the checksum differs")
    return found


def _trace(about: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> PromptTrace:
    tuples = {"answers": tuple(about["answers"]), "answer_tokens": tuple(map(tuple, about["answer_tokens"]))}
    texts = {name: about[name] for name in _TEXTS} | tuples
    stacks: dict[Stack, StackTrace] = {}
    for stack, own in about["stacks"].items():
        restored, spread = (
            {mediator: tensors[f"{stack}/{mediator}/{kind}"] for mediator in own["mediators"]} for kind in _KINDS
        )
        first, end = own["subject"]
        stacks[cast(Stack, stack)] = StackTrace(tuple(own["tokens"]), (first, end), restored, spread)
    return PromptTrace(**texts, clean=tensors["clean"], corrupted=tensors["corrupted"], stacks=stacks)


def _damaged(file: Path, why: object) -> ValueError:
    return ValueError(
        f"expected the trace of a prompt in {str(file)!r}, found a missing or damaged file ({why}): "
        "delete it, and trace the prompt again"
    )
