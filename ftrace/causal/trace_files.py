"""The results of causal tracing on disk: one file for each prompt, written whole or not at all.

``FOLDER/prompts/NAME.safetensors`` holds the numbers, all float64: ``clean [O]``, ``corrupted [O]`` and, for each stack
and mediator, ``decoder/hidden/restored [O, L, T]`` and ``decoder/hidden/spread [O, L, T]``; outcomes O are in the order
of :data:`~ftrace.causal.prompt_trace.OUTCOMES`. ``safetensors.numpy.load_file`` reads them. The metadata hold the rest
as JSON: ``trace`` (tokens, the subject's positions, texts, status, rank) and ``settings`` (how it was traced); and
``digest``, of all of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ftrace.causal.prompt_trace import OUTCOMES, Outcome, PromptTrace, Stack, StackTrace, Status
from ftrace.files.content_digests import digest_of_parts
from ftrace.files.digests import DamagedError
from ftrace.files.whole_files import whole_file

FORMAT = "ftrace-prompt-trace"
VERSION = 2
_FOLDER = "prompts"
_ENDING = ".safetensors"
_SAFE = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,79}")
_KINDS = ("restored", "spread")
_TEXTS = (
    "name", "status", "reason", "prompt", "subject", "answers", "fact", "query_id", "rank", "answer_tokens",
    "foil_token", "sigma",
)  # fmt: skip


class _StackFacts(TypedDict):
    tokens: list[str]
    subject: tuple[int, int]
    mediators: list[str]


class _TraceFacts(TypedDict):
    name: str
    status: Status
    reason: str
    prompt: str
    subject: str
    answers: list[str]
    fact: str | None
    query_id: int | None
    rank: int | None
    answer_tokens: list[list[int]]
    foil_token: int | None
    sigma: float | None
    outcomes: list[Outcome]
    stacks: dict[Stack, _StackFacts]


def trace_file(folder: Path, name: str) -> Path:
    """Return the path of a prompt's trace.

    A name of lower-case letters, digits, ``.``, ``_`` and ``-`` is the file's name. Any other name keeps only what all
    file systems accept, and gets ``~`` and a hash of the name: names that differ only in case or in special characters
    are different files everywhere.

    Args:
        folder: The folder of the traces.
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
        folder: The folder of the traces; missing folders are made.
        settings: How it was traced: values that JSON can hold, the same for all prompts of a folder.

    Returns:
        The file.

    Raises:
        ValueError: If the shape of a grid doesn't agree with tokens and outcomes, a prompt that was traced has no grids
            or one that was not has some, or JSON can't hold the settings.
    """
    tensors = _tensors(trace)
    about: dict[str, Any] = {name: getattr(trace, name) for name in _TEXTS}
    about["outcomes"] = list(OUTCOMES)
    about["stacks"] = {
        stack: {
            "tokens": stack_trace.tokens,
            "subject": [int(position) for position in stack_trace.subject],
            "mediators": list(stack_trace.restored),
        }
        for stack, stack_trace in trace.stacks.items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "trace": json.dumps(about),
        "settings": _settings_as_json(settings),
    }
    metadata["digest"] = _digest(tensors, metadata)
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
    """Collect all numbers of a trace by their names on disk, and check them."""
    if (trace.status == "traced") != bool(trace.stacks):
        raise ValueError(
            f"expected grids of a prompt that was traced and of no other, found {len(trace.stacks)} stacks of prompt "
            f"{trace.name!r}, whose status is {trace.status!r}"
        )
    arrays = {name: _array(trace, name, getattr(trace, name), (len(OUTCOMES),)) for name in ("clean", "corrupted")}
    for stack, stack_trace in trace.stacks.items():
        restored, spread = stack_trace.restored, stack_trace.spread
        if not restored or restored.keys() != spread.keys():
            raise ValueError(
                f"expected some mediators and the spread of each, found {list(restored)} restored and spreads of "
                f"{list(spread)} in the {stack} of prompt {trace.name!r}"
            )
        layers = next((np.shape(grid)[1] for grid in restored.values() if np.ndim(grid) == 3), 0)
        for mediator in restored:
            for kind in _KINDS:
                name = f"{stack}/{mediator}/{kind}"
                shape = (len(OUTCOMES), layers, len(stack_trace.tokens))
                arrays[name] = _array(trace, name, getattr(stack_trace, kind)[mediator], shape)
    return arrays


def _array(trace: PromptTrace, name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(values) != shape or values.dtype != np.float64:
        raise ValueError(
            f"expected {name} of prompt {trace.name!r} as float64 of shape {shape} (outcomes, layers, tokens), found "
            f"{values.dtype} of shape {np.shape(values)}"
        )
    return np.ascontiguousarray(values)  # safetensors writes arrays of other memory layouts wrongly


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    parts: list[bytes | str] = [metadata["version"], metadata["trace"], metadata["settings"]]
    for name in sorted(tensors):
        parts += [name, f"{tensors[name].dtype.str} {tensors[name].shape}", tensors[name].tobytes()]
    return digest_of_parts(parts)


def _is_intact(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bool:
    if metadata["version"] == "1":
        return int(metadata["checksum"]) == _checksum(tensors, metadata)
    return metadata["digest"] == _digest(tensors, metadata)


def _checksum(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> int:
    """Compute the checksum that traces of version 1 have."""
    checksum = zlib.crc32("\n".join([metadata["trace"], metadata["settings"], *sorted(tensors)]).encode())
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].tobytes(), checksum)
    return checksum


def read_trace(file: Path) -> PromptTrace:
    """Read a prompt's trace.

    Raises:
        ValueError: If the file is missing, damaged, or not the trace of a prompt.
    """
    return _read(file)[0]


def read_settings(file: Path) -> dict[str, Any]:
    """Read how a prompt was traced, as JSON has it.

    Raises:
        ValueError: If the file is missing, damaged, or not the trace of a prompt.
    """
    return _read(file)[1]


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
    if metadata.get("version") not in [str(version) for version in range(1, VERSION + 1)]:
        raise ValueError(
            f"expected a trace in version {VERSION} of its format in {str(file)!r}, found version "
            f"{metadata.get('version')!r:.40}: update ftrace, or trace the prompt again"
        )
    try:
        if not _is_intact(tensors, metadata):
            raise _damaged(file, "its content is not what was written: the digest differs")
        trace, settings = _trace(json.loads(metadata["trace"]), tensors), json.loads(metadata["settings"])
        _tensors(trace)  # checks the shapes
        msgspec.convert(settings, dict[str, Any])
    except DamagedError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(file, error) from error
    return trace, settings


def _trace(parsed: Any, tensors: Mapping[str, np.ndarray]) -> PromptTrace:
    about: dict[str, Any] = msgspec.convert(parsed, _TraceFacts)
    if about["outcomes"] != list(OUTCOMES):
        raise ValueError(f"expected the outcomes {list(OUTCOMES)}, found {about['outcomes']}")
    tuples = {"answers": tuple(about["answers"]), "answer_tokens": tuple(map(tuple, about["answer_tokens"]))}
    texts = {name: about[name] for name in _TEXTS} | tuples
    stacks: dict[Stack, StackTrace] = {}
    for stack, facts in about["stacks"].items():
        restored, spread = (
            {mediator: tensors[f"{stack}/{mediator}/{kind}"] for mediator in facts["mediators"]} for kind in _KINDS
        )
        first, end = facts["subject"]
        stacks[cast(Stack, stack)] = StackTrace(tuple(facts["tokens"]), (first, end), restored, spread)
    return PromptTrace(**texts, clean=tensors["clean"], corrupted=tensors["corrupted"], stacks=stacks)


def _damaged(file: Path, why: object) -> DamagedError:
    return DamagedError(
        f"expected the trace of a prompt in {str(file)!r}, found a missing or damaged file ({why}): "
        "delete it, and trace the prompt again"
    )
