"""What a store's manifest says of how its scores came about, in words: names and values for a reader."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ftrace.scores import ScoreStore
from ftrace.scores.store_views import store_facts
from ftrace.shown_text import counted

_MOST = 200  # characters of a value
_MOST_NAMES = 5
# Said elsewhere, or nothing for a reader.
_LEFT_OUT = {
    "format", "version", "digest", "files", "run_id", "complete", "kinds", "breakdown", "num_examples", "num_queries",
    "num_pairs", "dtype", "method", "doubts", "ledger", "rows", "query_first_steps", "processes_in_store", "first_step",
    "refreshes", "module", "class", "hyperparameters", "snapshot_weights", "refreshes_failed",
}  # fmt: skip
_ELSEWHERE = {"ledger", "in doubt"}  # of the facts that a notebook shows
_PATH = re.compile(r"(?:~|[A-Za-z]:)?[/\\](?:.*[/\\])?")


def manifest_facts(store: ScoreStore) -> list[tuple[str, str]]:
    """Say how a store's scores came about: names and values, in plain words and without absolute paths.

    What this version of ftrace doesn't know is shown as short JSON.
    """
    manifest = store.manifest
    facts = [(name, value) for name, value in store_facts(store) if name not in _ELSEWHERE]
    facts.insert(0, ("size", f"{counted(_count(manifest, 'num_examples'), 'example')}, "
                     f"{counted(_count(manifest, 'num_queries'), 'query', 'queries')}"))  # fmt: skip
    hyperparameters = manifest.get("hyperparameters")
    if isinstance(hyperparameters, Mapping):
        facts += _of_module(hyperparameters)
    for name, value in manifest.items():
        if name == "projection_side" and value is None:
            facts.append(("projection", "none: gradients are exact"))
        elif name not in _LEFT_OUT and value not in (None, "", [], {}):
            facts += _fact(name, value, manifest)
    return [(name, _shortened(value)) for name, value in facts]


def _fact(name: str, value: Any, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say one entry of a manifest; an entry of an unknown form as it is."""
    if name in _WORDS:
        label, words = _WORDS[name]
        try:
            text = words(value, manifest)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError):
            text = _as_json(value)
        if text:
            yield label, text
    else:
        yield name.replace("_", " "), _as_json(value)


def _of_module(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Say the module's hyperparameters: those of the learning rate on their own, others in one line."""
    if settings.get("learning_rate") is not None:
        warmup = settings.get("warmup_steps")
        yield (
            "learning rate",
            _scalar(settings["learning_rate"]) + (f", after {warmup} warm-up steps" if warmup else ""),
        )
    rest = {name: value for name, value in settings.items() if name not in ("learning_rate", "warmup_steps")}
    text = _flat({name: value for name, value in rest.items() if not name.startswith("_")})
    if text:
        yield "module's settings", text
    if isinstance(settings.get("config"), Mapping):
        yield "model", _flat(settings["config"])


def _steps(steps: Any, manifest: Mapping[str, Any]) -> str:
    first = manifest.get("first_step", 0)
    return f"{counted(int(steps), 'optimizer step')}{f', from step {first:,} on' if first else ''}"


def _refreshes(every: Any, manifest: Mapping[str, Any]) -> str:
    times = f" ({counted(len(manifest['refreshes']), 'time')})" if "refreshes" in manifest else ""
    failed = f"; {len(manifest['refreshes_failed'])} times in vain" if manifest.get("refreshes_failed") else ""
    rhythm = "as losses moved" if every == "auto" else f"every {counted(int(every), 'step')}"
    return f"computed anew {rhythm}{times}{failed}"


def _optimizers(optimizers: Any, manifest: Mapping[str, Any]) -> str:
    texts = []
    for optimizer in optimizers:
        groups = list(dict.fromkeys(_flat(group) for group in optimizer["groups"]))
        name = str(optimizer["class"]).rpartition(".")[2]
        texts.append(f"{name} ({' / '.join(filter(None, groups))})" if any(groups) else name)
    return ", ".join(texts)


def _coverage(coverage: Any, manifest: Mapping[str, Any]) -> str:
    if isinstance(coverage, Mapping):  # of an index
        left_out = list(coverage["left_out"])
        return f"{counted(len(coverage['blocks']), 'block')} of weights" + (
            f"; left out: {_names(left_out)}" if left_out else ""
        )
    total = sum(line["elements"] for line in coverage)
    covered = sum(line["elements"] for line in coverage if line["status"] == "covered")
    missing = [str(line["parameter"]) for line in coverage if line["status"] != "covered"]
    if not missing:
        return f"all {total:,} trained weights"
    return f"{covered / total:.1%} of {total:,} weights; not covered: {_names(missing)}"


def _self_check(check: Any, manifest: Mapping[str, Any]) -> str:
    failures = list(check["failures"])
    return f"{counted(len(failures), 'failure')}: {failures[0]}" if failures else "no failures"


def _staleness(measured: Any, manifest: Mapping[str, Any]) -> str:
    values = [value for value in measured.values() if value is not None]
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"rank correlation of products with old and new query gradients {mean:.2f}, of {len(values)} refreshes"


def _bytes(size: Any, manifest: Mapping[str, Any]) -> str:
    return f"{size / 2**30:.2g} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def _projection(side: Any, manifest: Mapping[str, Any]) -> str:
    return f"each weight's gradient becomes {side} x {side}"


def _if_several(count: Any, manifest: Mapping[str, Any]) -> str:
    return f"{count:,}" if count > 1 else ""


def _snapshots(names: Any, manifest: Mapping[str, Any]) -> str:
    weights = manifest.get("snapshot_weights") or []
    weighted = (
        f", weighted {', '.join(f'{weight:.3g}' for weight in weights[:_MOST_NAMES])}" if len(weights) > 1 else ""
    )
    return _names(list(names)) + weighted


def _loss(name: Any, manifest: Mapping[str, Any]) -> str:
    short = str(name).rpartition(".")[2]
    return _LOSSES.get(short, short)


_INTEGRATION = {
    "left": "the query gradients of the last refresh (left)",
    "trapezoid": "query gradients are interpolated (trapezoid)",
}
_LOSSES = {
    "module_example_losses": "the module's own, example_losses(batch)",
    "huggingface_losses": "that of the Hugging Face model",
}
# By the manifest's entry: what it is called, and how its value is said; "" leaves it out.
_WORDS: Mapping[str, tuple[str, Callable[[Any, Mapping[str, Any]], str]]] = {
    "steps": ("training", _steps),
    "steps_left_out": ("steps left out", lambda steps, _: f"{len(steps):,}, whose gradients were not finite"),
    "steps_skipped": ("steps skipped", lambda steps, _: f"{len(steps):,}, which the optimizer didn't take"),
    "refresh_every_n_steps": ("query gradients", _refreshes),
    "projection_side": ("projection", _projection),
    "integration": ("between refreshes", lambda name, _: _INTEGRATION.get(name, str(name))),
    "whitening": ("whitening", lambda settings, _: _flat(settings)),
    "staleness": ("staleness", _staleness),
    "optimizers": ("optimizer", _optimizers),
    "gradient_clip_val": ("clipping", lambda norm, _: f"of gradients, at norm {norm:g}"),
    "accumulate_grad_batches": ("batches accumulated for a step", _if_several),
    "processes": ("processes", _if_several),
    "strategy": ("strategy", lambda name, _: "" if name == "SingleDeviceStrategy" else str(name)),
    "weights": ("weights", lambda counts, _: ", ".join(f"{count:,} in {dtype}" for dtype, count in counts.items())),
    "query_losses": ("loss of a query", _loss),
    "answers": ("accepted answers", lambda which, _: str(which)),
    "self_check": ("self-check", _self_check),
    "parameters": ("parameters", lambda names, _: "" if list(names) == ["*"] else _names(list(names))),
    "unfrozen": ("unfrozen", lambda steps, _: f"parameters at {counted(len(steps), 'step')}"),
    "coverage": ("coverage", _coverage),
    "versions": ("versions", lambda versions, _: _flat(versions)),
    "options": ("options", lambda options, _: _flat(options)),
    "snapshots": ("snapshots", _snapshots),
    "seconds": ("seconds", lambda seconds, _: f"{seconds:,.3g}"),
    "peak_memory_bytes": ("peak memory", _bytes),
}


def _count(manifest: Mapping[str, Any], name: str) -> int:
    return int(manifest[name])


def _names(names: Sequence[Any]) -> str:
    shown = ", ".join(_scalar(name) for name in names[:_MOST_NAMES])
    return f"{shown} … +{len(names) - _MOST_NAMES}" if len(names) > _MOST_NAMES else shown


def _flat(settings: Mapping[str, Any]) -> str:
    """Say those of some settings that are not nested: "window 100; damping 0.1"."""
    parts = []
    for name, value in settings.items():
        if isinstance(value, list) and value and not any(isinstance(item, list | dict) for item in value):
            value = _names(value)
        if value is not None and not isinstance(value, list | dict):
            parts.append(f"{name.replace('_', ' ')} {_scalar(value)}")
    return "; ".join(parts)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        _without_folders(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def _as_json(value: Any) -> str:
    """Write a value as JSON if that is short; else say how much there is of it."""
    if isinstance(value, str | bool | int | float):
        return _scalar(value)
    text = json.dumps(_pathless(value), ensure_ascii=False)
    return text if len(text) <= _MOST else counted(len(value), "entry", "entries")


def _pathless(value: Any) -> Any:
    """Take absolute paths out of nested values."""
    if isinstance(value, dict):
        return {_without_folders(str(name)): _pathless(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_pathless(item) for item in value]
    return _without_folders(value) if isinstance(value, str) else value


def _without_folders(text: str) -> str:
    """Shorten an absolute path to its last name: where something lies on one machine is nothing for a reader."""
    match = _PATH.match(text)
    return f"…/{text[match.end() :]}" if match else text


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
