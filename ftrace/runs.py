"""A finished training run on disk: its config, its snapshots, and what was learned.

config.yaml             the run's config, as LightningCLI saves it
working_directory.txt   what relative paths in the config start from, as train.py writes it
snapshots/step-*/       as CheckpointSnapshots writes them
learned_queries.json    which queries the last snapshot answers; made when first asked for
online/, bm25/, ...     score stores
"""

from __future__ import annotations

import contextlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule

from ftrace.data import FactData
from ftrace.evaluation import find_learned_queries
from ftrace.models import FactLM, find_snapshots, load_snapshot

WORKING_DIRECTORY = "working_directory.txt"


class Run:
    """A finished run of a FactLM on a fact-tracing data set.

    Args:
        folder: The run's log folder.

    Raises:
        ValueError: If it is not the folder of such a run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / "config.yaml"
        try:
            config = yaml.safe_load(file.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ValueError(
                f"{str(folder)!r} is not the folder of a run: can't read its config.yaml ({error})"
            ) from error
        if not isinstance(config, dict) or not {"model", "data"} <= config.keys():
            raise ValueError(f"{str(file)!r}: expected the sections model and data, as train.py saves them")
        self._config: dict[str, Any] = config
        noted = self.folder / WORKING_DIRECTORY
        there = Path(noted.read_text().strip()) if noted.exists() else Path.cwd()
        self._working_directory = there if there.is_dir() else Path.cwd()

    @cached_property
    def data(self) -> FactData:
        """The run's datamodule, set up."""
        data = self._instantiate("data", LightningDataModule)
        if not isinstance(data, FactData):
            raise ValueError(f"{self.folder}: expected a datamodule of facts, found {type(data).__name__}")
        data.prepare_data()
        data.setup()
        return data

    @cached_property
    def last_snapshot(self) -> Path:
        """The folder of the run's last snapshot."""
        return find_snapshots(self.folder / "snapshots")[-1]

    @cached_property
    def model(self) -> FactLM:
        """The run's model at its last snapshot, in eval mode."""
        model = self._instantiate("model", LightningModule)
        if not isinstance(model, FactLM):
            raise ValueError(f"{self.folder}: expected the module FactLM, found {type(model).__name__}")
        if not hasattr(model, "model"):
            model.build(self.data.tokenizer)
        load_snapshot(model, self.last_snapshot)
        return model.eval()

    def learned_queries(self) -> list[int]:
        """Ids of the queries that the last snapshot answers."""
        file = self.folder / "learned_queries.json"
        snapshot = self.last_snapshot.name
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what can't be read is made anew
            known = json.loads(file.read_text())
            if known["snapshot"] == snapshot:
                return [int(query) for query in known["query_ids"]]
        learned = find_learned_queries(self.model, self.data.query_dataloader())
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(json.dumps({"snapshot": snapshot, "query_ids": learned}) + "\n")
        temporary.rename(file)
        return learned

    def _instantiate(self, section: str, base: type) -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(base, section)
        try:
            with contextlib.chdir(self._working_directory):
                return parser.instantiate(parser.parse_object({section: self._config[section]}))[section]
        except ArgumentError as error:
            raise ValueError(f"{self.folder / 'config.yaml'}, section {section}: {error}") from error
