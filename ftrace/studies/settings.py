"""Settings of a study: its question, and what to train and score to answer it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftrace.arguments import Name, Seed, checked
from ftrace.attribution import AttributionMethod
from ftrace.evaluation.options import known_name
from ftrace.evaluation.retrieval.metrics import METRICS
from ftrace.files.yaml_files import read_yaml
from ftrace.named_configs import config_file

Report = Literal["methods", "learned", "variants"]
_ONLINE, _SNAPSHOTS = "ftrace.callbacks.OnlineTracIn", "ftrace.callbacks.CheckpointSnapshots"


@checked
@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        config: A config of ``ftrace fit``: a file, or the name of one that ships with ftrace.
        changes: Changes to the config, nested as the config is. A list replaces the config's list.
        online: Changes to the options of the config's OnlineTracIn.
        snapshots: The options of its CheckpointSnapshots; default: the study's, or else the config's own.
    """

    config: Name
    changes: dict[str, Any] = field(default_factory=dict)
    online: dict[str, Any] = field(default_factory=dict)
    snapshots: dict[str, Any] | None = None

    def settings(self, study: Study) -> dict[str, Any]:
        """Make the config of train.py; this variant's changes take precedence over the study's.

        Raises:
            ValueError: If the config is unknown, can't be read, or doesn't have exactly one OnlineTracIn and one
                CheckpointSnapshots.
        """
        try:
            config = read_yaml(Path(config_file(self.config)))
        except ValueError as error:
            raise ValueError(f"config: {error}") from error
        if not all(isinstance(config.get(section), Mapping) for section in ("trainer", "data")):
            raise ValueError(f"{self.config}: expected a config of train.py with the sections model, data and trainer")
        config = merged(merged(config, study.changes), self.changes)
        callbacks = config["trainer"].get("callbacks") or []
        for path in (_ONLINE, _SNAPSHOTS):
            ours = [callback for callback in callbacks if callback["class_path"] == path]
            if len(ours) != 1:
                raise ValueError(f"{self.config}: expected one {path} among trainer.callbacks, found {len(ours)}")
            given = ours[0].get("init_args") or {}
            if path == _ONLINE:
                ours[0]["init_args"] = {**given, **study.online, **self.online}
            else:  # only one of steps, every_n_steps and log_spaced may be given
                ours[0]["init_args"] = self.snapshots or study.snapshots or given
        config["trace"] = None  # the study has methods of its own
        return config


@checked
@dataclass(frozen=True)
class Study:
    """Several trainings and several methods that answer one question.

    Args:
        name: The name of the folder of its results.
        question: The question, which becomes the title of the results.
        variants: Ways to train, by name.
        methods: The methods that score each run, besides its online scores, by the name of the store.
        seeds: The seeds of weights, order and, if it is generated, data. Each variant is trained with each seed.
        changes: Changes to all configs.
        online: Changes to the options of every OnlineTracIn.
        snapshots: The options of every CheckpointSnapshots; default: the configs' own.
        choose: Rows to choose the best of on the development half of the queries, as in ``ftrace evaluate --choose``.
            All rows are then reported on the other half.
        rows: Globs over the rows to report, such as "online *"; default: all.
        against: The row to which paired differences are taken.
        report: "methods": a table of methods for each variant; "learned": also by the step at which queries were
            learned; "variants": the variants side by side, with their costs.
        pools: Whether to report on candidate pools, too.
    """

    name: Name
    question: str
    variants: dict[str, Variant]
    methods: dict[str, AttributionMethod] = field(default_factory=dict)
    seeds: tuple[Seed, ...] = (0, 1, 2)
    changes: dict[str, Any] = field(default_factory=dict)
    online: dict[str, Any] = field(default_factory=dict)
    snapshots: dict[str, Any] | None = None
    choose: tuple[Name, ...] = ()
    rows: tuple[str, ...] = ()
    against: Name | None = None
    report: Report = "methods"
    pools: bool = False

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise ValueError("expected at least one variant and one seed, found none")
        if "online" in self.methods:
            raise ValueError('methods: expected other names than "online", which is what training writes')
        for family in self.choose:
            known_name(family.rpartition(":")[2], METRICS, "choose")


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Apply changes to nested settings, and return the result; neither argument is modified.

    Example:
        >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
        {'a': {'b': 3, 'c': 2}}
    """
    result = copy.deepcopy(dict(settings))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result
