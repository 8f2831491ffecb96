"""A finished training run on disk: its config, its snapshots, and what was learned.

config.yaml             the run's config, as LightningCLI saves it
working_directory.txt   the folder that relative paths in the config start from, as ftrace fit writes it
snapshots/step-*/       as CheckpointSnapshots writes them
learned_queries.json    which queries were learned, by which rule; written on first use
answers.json            what the model answers to queries at the last snapshot; written on first use
candidate_pools/*       the candidates among which each query's examples are ranked, by a hash; written on first use
online/, bm25/, ...     score stores
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec
from jsonargparse import ArgumentError, ArgumentParser

from ftrace.evaluation import EvaluatedQueries, LearnedQueries
from ftrace.evaluation.answers import ModelAnswer
from ftrace.evaluation.learned import Rule
from ftrace.evaluation.retrieval import CandidatePools, PoolSettings, make_candidate_pools
from ftrace.files.inside import inside
from ftrace.files.snapshot_files import find_snapshots
from ftrace.files.yaml_files import read_yaml
from ftrace.index import snapshot_fingerprint
from ftrace.run_classes import check_classes, class_path_of, in_folder, tables_of
from ftrace.run_folder import CONFIG, LearnedFacts, keep_answers, keep_learned, kept_answers, kept_learned

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from ftrace.data import FactData, FactTables
    from ftrace.models import FactLM

WORKING_DIRECTORY = "working_directory.txt"
_BARE: dict[str, Any] = {  # settings that a barebones Trainer needs
    "callbacks": None, "logger": None, "enable_checkpointing": None, "enable_progress_bar": None,
    "enable_model_summary": None, "log_every_n_steps": None, "num_sanity_val_steps": None, "fast_dev_run": False,
    "detect_anomaly": False, "profiler": None, "barebones": True,
}  # fmt: skip
NOT_OF_WEIGHTS = (*_BARE, "default_root_dir")  # settings of a Trainer that the weights don't depend on


class Run:
    """Finished run of a FactLM on a fact-tracing data set.

    Args:
        folder: The run's log folder.
        trust: Whether classes that aren't ftrace's own are followed: see :mod:`ftrace.run_classes`.

    Raises:
        ValueError: If the folder is not that of such a run.
    """

    def __init__(self, folder: str | Path, trust: bool = False) -> None:
        self.folder = Path(folder)
        self.trust = trust
        file = self.folder / CONFIG
        try:
            config = read_yaml(file)
        except ValueError as error:
            raise ValueError(f"{str(folder)!r} is not the folder of a run: {error}") from error
        if not {"model", "data"} <= config.keys():
            raise ValueError(f"{str(file)!r}: expected the sections model and data, as train.py saves them")
        self.config: dict[str, Any] = config
        note = self.folder / WORKING_DIRECTORY
        trained_in = Path(note.read_text(errors="replace").strip()) if note.is_file() else Path.cwd()
        self._working_directory = trained_in if trained_in.is_dir() else Path.cwd()

    @cached_property
    def data(self) -> FactData:
        """The run's datamodule, set up."""
        from ftrace.data import FactData  # imports torch, as what other methods import does

        data: FactData = self._instantiate("data", FactData)
        data.prepare_data()
        data.setup()
        return data

    @cached_property
    def tables(self) -> FactTables:
        """The tables of the run's data: without its batches, for which torch and Lightning are imported."""
        kind = tables_of(class_path_of(self.config["data"]))
        if "data" in vars(self) or kind is None:
            return self.data
        from ftrace.data import FactTables

        tables: FactTables = self._instantiate("data", FactTables, kind)
        tables.make_tables()
        tables.open_tables()
        return tables

    @cached_property
    def snapshots(self) -> list[Path]:
        """The folders of the run's snapshots, by step."""
        return find_snapshots(self.folder / "snapshots")

    @property
    def last_snapshot(self) -> Path:
        """The folder of the run's last snapshot."""
        return self.snapshots[-1]

    def snapshot(self, which: Literal["last", "first"] | int) -> Path:
        """Return the folder of a snapshot.

        Args:
            which: "last", "first", or a number of steps.

        Raises:
            ValueError: If there is no snapshot after that number of steps.
        """
        if isinstance(which, str):
            return self.snapshots[-1 if which == "last" else 0]
        by_step = {int(folder.name.removeprefix("step-")): folder for folder in self.snapshots}
        if which not in by_step:
            raise ValueError(f"snapshot: expected last, first, or one of the steps {sorted(by_step)}, found {which}")
        return by_step[which]

    @cached_property
    def model(self) -> FactLM:
        """The run's model at its last snapshot, in eval mode."""
        return self.model_at()

    def model_at(self, snapshot: Path | None = None) -> FactLM:
        """Load the run's model at a snapshot, in eval mode; a new one at each call.

        Args:
            snapshot: The snapshot's folder; default: the last.
        """
        from ftrace.models import load_snapshot

        model = self.untrained_model()
        if not hasattr(model, "model"):
            model.build(self.data.tokenizer)
        load_snapshot(model, snapshot or self.last_snapshot)
        return model.eval()

    def untrained_model(self) -> FactLM:
        """Create the run's model from its config; a model from scratch may still need ``build()``."""
        from ftrace.models import FactLM

        model: FactLM = self._instantiate("model", FactLM)
        return model

    def bare_trainer(self, **changes: Any) -> Trainer:
        """Create the run's trainer without callbacks, logger and whatever else doesn't change the weights.

        Args:
            changes: Settings that replace the run's.
        """
        from lightning.pytorch import Trainer

        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(Trainer, "trainer")
        return self._parsed(parser, "trainer", {**self.config["trainer"], **_BARE, **changes})

    def queries(self, split_seed: int = 0) -> EvaluatedQueries:
        """Return all queries that have ground-truth proponents.

        Args:
            split_seed: Seed of the halves for choosing and for reporting.
        """
        rows = self.tables.query_rows.select_columns(["query_id", "fact"])
        facts = dict(zip(rows["query_id"], rows["fact"], strict=True))
        return EvaluatedQueries.of(self.tables.proponents, facts, seed=split_seed, data=self.tables.fingerprint)

    def learned_queries(self, rule: Rule | None = None) -> list[int]:
        """Return the ids of the queries that were learned, as :meth:`learned`."""
        return self.learned(rule).query_ids

    def learned(self, rule: Rule | None = None) -> LearnedQueries:
        """Return which queries were learned; computed once, and kept in learned_queries.json.

        Args:
            rule: "paper" or "last"; default: "paper", or "last" for a run of a single snapshot.

        Raises:
            ValueError: If the rule is "paper" and there is one snapshot only.
        """
        rule = rule or ("paper" if len(self.snapshots) > 1 else "last")
        if rule == "paper" and len(self.snapshots) < 2:
            raise ValueError(
                f"{self.folder}: expected two snapshots, before and after learning, found one. Save step 0 too, with "
                "CheckpointSnapshots, or take --rule last"
            )
        snapshots = [self.snapshots[0], self.last_snapshot] if rule == "paper" else [self.last_snapshot]
        key = self.learned_key(snapshots)
        known = kept_learned(self.folder)
        if rule in known and known[rule]["key"] == key:
            return msgspec.convert(known[rule], LearnedQueries)
        from ftrace.evaluation import find_learned_queries

        rows = self.tables.query_rows.select_columns(["query_id", "answers"])
        answers = dict(zip(rows["query_id"], rows["answers"], strict=True))
        assert self.data.tokenizer is not None
        learned = find_learned_queries(
            self.model, lambda: self.model_at(self.snapshots[0]), self.data.query_dataloader(), answers,
            self.data.tokenizer, rule, [folder.name for folder in snapshots],
        )  # fmt: skip
        learned = replace(learned, key=key)
        keep_learned(self.folder, {**known, rule: cast("LearnedFacts", asdict(learned))})
        return learned

    def answers(self, query_ids: Collection[int] | None = None) -> dict[int, ModelAnswer]:
        """Return what the model answers at the last snapshot; each query is asked once, and kept in answers.json.

        Args:
            query_ids: Ids of the queries; default: all. One that the run doesn't know has no answer.
        """
        key = self.learned_key([self.last_snapshot])
        answers = {query: ModelAnswer(**said) for query, said in kept_answers(self.folder, key).items()}
        places = {query: place for place, query in enumerate(self.tables.query_rows["query_id"])}
        wanted = list(places) if query_ids is None else [query for query in query_ids if query in places]
        lacking = [self.tables.query_rows[places[query]] for query in wanted if query not in answers]
        if lacking:
            from ftrace.evaluation.asking import find_answers

            assert self.data.tokenizer is not None
            accepted = {row["query_id"]: row["answers"] for row in lacking}
            answers |= find_answers(self.model, self.data.query_batches(lacking), accepted, self.data.tokenizer)
        keep_answers(self.folder, key, {query: asdict(said) for query, said in answers.items()})
        return {query: answers[query] for query in wanted}

    def learned_key(self, snapshots: Sequence[Path]) -> str:
        """Hash all that learned queries depend on, with the version of how they are found."""
        weights = [snapshot_fingerprint(folder) for folder in snapshots]
        inputs = [2, *weights, self.tables.fingerprint, list(self.tables.query_rows["query_id"])]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

    def candidate_pools(
        self, settings: PoolSettings | None = None, query_ids: Collection[int] | None = None
    ) -> CandidatePools:
        """Return the candidates among which each query's examples are ranked; made once, and kept in candidate_pools/.

        Args:
            settings: How many candidates come from which source.
            query_ids: Default: the learned queries. Queries without ground-truth proponents are left out.
        """
        settings = settings or PoolSettings()
        wanted = self.queries().among(self.learned_queries() if query_ids is None else query_ids, "pools").query_ids
        chosen = sorted(wanted.tolist())
        key = json.dumps([self.tables.fingerprint, asdict(settings), chosen])
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        file = inside(self.folder, f"candidate_pools/{digest}.parquet")
        with contextlib.suppress(ValueError):  # what can't be read is made anew
            return CandidatePools.open(file)
        tables = self.tables
        row_of = {query: row for row, query in enumerate(tables.query_rows["query_id"])}
        texts = tables.query_rows.select_columns(["query_id", "inputs_pretokenized", "targets_pretokenized"])
        rows = [texts[row_of[query]] for query in chosen]
        pools = make_candidate_pools(tables.train_rows, rows, tables.proponents, settings)
        pools.write(file)
        return pools

    def _instantiate(self, section: str, base: type, class_path: str | None = None) -> Any:
        """Make what a section of the config says, or an object of another class with the same options."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(base, section, required=True)  # it is checked before it is made
        settings = self.config[section]
        if class_path is not None:
            settings = {**(settings if isinstance(settings, Mapping) else {}), "class_path": class_path}
        return self._parsed(parser, section, settings)

    def _parsed(self, parser: ArgumentParser, section: str, settings: Any) -> Any:
        if not self.trust:
            check_classes(self.config, section, self.folder / CONFIG, ignored=_BARE)
        try:
            with contextlib.chdir(self._working_directory) if self.trust else in_folder(self._working_directory):
                return parser.instantiate(parser.parse_object({section: settings}))[section]
        except ArgumentError as error:
            raise ValueError(f"{self.folder / 'config.yaml'}, section {section}: {error}") from error
