"""What a study asks, and what it trains and scores to find out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ftrace.attribution import AttributionMethod
from ftrace.evaluation.options import known_name
from ftrace.evaluation.retrieval.metrics import METRICS

Report = Literal["methods", "learned", "variants"]
_ONLINE, _SNAPSHOTS = "ftrace.callbacks.OnlineTracIn", "ftrace.callbacks.CheckpointSnapshots"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        config: A config of train.py.
        changes: What is different, nested as the config is; lists are replaced as a whole.
        online: What is different in the options of its OnlineTracIn.
        snapshots: What is different in the options of its CheckpointSnapshots.
    """

    config: str
    changes: dict[str, Any] = field(default_factory=dict)
    online: dict[str, Any] = field(default_factory=dict)
    snapshots: dict[str, Any] | None = None

    def settings(self, study: Study) -> dict[str, Any]:
        """The whole config of train.py: this variant's changes go before the study's.

        Raises:
            ValueError: If the config can't be read, or has not one OnlineTracIn and one CheckpointSnapshots.
        """
        try:
            found = yaml.safe_load(Path(self.config).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(f"config: can't read {self.config!r} ({error})") from error
        if not isinstance(found, Mapping) or not all(
            isinstance(found.get(one), Mapping) for one in ("trainer", "data")
        ):
            raise ValueError(f"{self.config}: expected a config of train.py with the sections model, data and trainer")
        found = merged(merged(found, study.changes), self.changes)
        callbacks = found["trainer"].get("callbacks") or []
        for path in (_ONLINE, _SNAPSHOTS):
            ours = [one for one in callbacks if one["class_path"] == path]
            if len(ours) != 1:
                raise ValueError(f"{self.config}: expected one {path} among trainer.callbacks, found {len(ours)}")
            given = ours[0].get("init_args") or {}
            if path == _ONLINE:
                ours[0]["init_args"] = {**given, **study.online, **self.online}
            else:  # of steps, every_n_steps and log_spaced only one may be given
                ours[0]["init_args"] = self.snapshots or study.snapshots or given
        found["trace"] = None  # the study has methods of its own
        return found


@dataclass(frozen=True)
class Study:
    """Several trainings, several methods, one question.

    Args:
        name: What it is called.
        question: What is asked.
        variants: Ways to train, by name.
        methods: What scores each run besides its online scores, by the name of the store.
        seeds: Each variant is trained with each of them: they seed weights, order and, where generated, data.
        changes: What is different in all configs.
        online: What is different in the options of all OnlineTracIn.
        snapshots: The options of all CheckpointSnapshots; default: the configs' own.
        choose: Rows to choose the best of on the development half of the queries, as in ``ftrace evaluate --choose``.
            All rows are then reported on the other half.
        rows: Globs over the rows to report, such as "online *"; default: all.
        against: The row to take paired differences to.
        report: "methods": a table of methods for each variant; "learned": also by the step at which queries were
            learned; "variants": the variants side by side, with what they cost.
        pools: Whether to report on candidate pools, too.
    """

    name: str
    question: str
    variants: dict[str, Variant]
    methods: dict[str, AttributionMethod] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    changes: dict[str, Any] = field(default_factory=dict)
    online: dict[str, Any] = field(default_factory=dict)
    snapshots: dict[str, Any] | None = None
    choose: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    against: str | None = None
    report: Report = "methods"
    pools: bool = False

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ValueError("expected at least one variant and one seed, found none")
        if "online" in self.methods:
            raise ValueError('methods: expected other names than "online", which is what training writes')
        for one in self.choose:
            known_name(one.rpartition(":")[2], METRICS, "choose")


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with changes in them; neither is changed.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    found = copy.deepcopy(dict(settings))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else copy.deepcopy(value)
    return found
