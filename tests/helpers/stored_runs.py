"""Formats beside scores for the fuzz test: what runs, indexes, traces and data are kept in, and what users give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from ftrace.causal import read_settings, read_trace, write_trace
from ftrace.data.corpus_files import FORM as CORPUS_FORM
from ftrace.data.corpus_files import read_queries, write_corpus
from ftrace.data.data_folder import whole_manifest
from ftrace.data.mapped_tables import MappedTables
from ftrace.data.row_files import SourceRow
from ftrace.data.text_files import read_texts
from ftrace.evaluation.results import read_results
from ftrace.evaluation.retrieval import CandidatePools, PoolSettings
from ftrace.files.causal_settings import FORM as CAUSAL_FORM
from ftrace.files.digests import facts_of_files
from ftrace.files.manifests import read_manifest, write_manifest
from ftrace.files.snapshot_files import FORM as SNAPSHOT_FORM
from ftrace.files.yaml_files import read_yaml
from ftrace.index import GradientIndex, Whitening, row_norms, write_examples, write_names
from ftrace.models import load_optimizer_states, load_snapshot
from ftrace.retraining import claim_folder, work
from ftrace.run_folder import keep_learned, kept_learned
from ftrace.scores import Texts
from helpers.fuzzed_files import StoredFormat
from helpers.made_index import make_index
from helpers.made_traces import left_out, made_trace


def _make_snapshot(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    module = nn.Linear(3, 2)
    save_file(module.state_dict(), folder / "weights.safetensors")
    save_file({"weight::exp_avg_sq": torch.rand(2, 3)}, folder / "second_moments.safetensors")
    group = {"learning_rate": 0.1, "settings": {"eps": 1e-8}, "steps": {"weight": 2.0}, "parameters": ["weight"]}
    facts = {"step": seed, "epoch": 0, "tied": {}, "optimizers": [{"class": "torch.optim.Adam", "groups": [group]}]}
    write_manifest(folder / "snapshot.json", SNAPSHOT_FORM, {**facts, "files": facts_of_files(folder)})


def _read_snapshot(folder: Path) -> Any:
    module = nn.Linear(3, 2)
    return load_snapshot(module, folder), module.state_dict(), load_optimizer_states(folder)


def _make_index(folder: Path, seed: int) -> None:
    index, _ = make_index(folder / "index", [[3, 1, 2, 9], [5, 6]], rows_of_shard=3, seed=seed)
    write_examples(index.folder, Texts.of([{"example_id": 3, "text": f"three {seed}"}], "example_id"))
    write_names(index.folder, {3: f"c{seed}", 1: "a"})
    _read_index(folder)  # keeps norms


def _read_index(folder: Path) -> Any:
    index = GradientIndex(folder / "index")
    plain = Whitening(None, 0.0, "")
    segments = [
        (
            segment.step, segment.rows(0, len(segment)), segment.ids, segment.weights, segment.order,
            segment.autocorrelation(), segment.preconditioners(), row_norms(segment, plain, index.folder / "norms"),
        )
        for segment in index.segments
    ]  # fmt: skip
    assert index.examples is not None
    return segments, index.examples.rows([3]), index.names_of_examples.of([3, 1]), index.settings, index.blocks


def _make_traces(folder: Path, seed: int) -> None:
    settings = {"settings": {"window": 1}, "noise": {"kind": "gaussian", "scale": 3.0, "samples": 2}}
    described = {**settings, "prompts": f"prompts {seed}", "model": f"model {seed}"}
    write_manifest(folder / "settings.json", CAUSAL_FORM, described)
    for trace in (made_trace("a", seed=seed), left_out("b")):
        write_trace(folder, trace, described)


def _read_traces(folder: Path) -> Any:
    settings = read_manifest(folder / "settings.json", CAUSAL_FORM)
    traces = []
    for name in ("a", "b"):
        file = folder / "prompts" / f"{name}.safetensors"
        trace, traced_with = read_trace(file), read_settings(file)
        if trace.name != name or any(settings.get(key) != value for key, value in traced_with.items()):
            raise ValueError(f"{file} is another prompt's, or was traced with other settings")
        traces.append(trace)
    return settings["model"], traces


class _Retrainer:
    """Stand-in that "trains" at once: its losses tell what was left out."""

    def __init__(self) -> None:
        rows = type("Rows", (), {"__len__": lambda _: 9, "__getitem__": lambda *_: [0, 1]})()
        self.run = type("Run", (), {"data": type("Data", (), {"train_rows": rows, "query_rows": rows})})

    def query_outcome(self, is_kept: np.ndarray, order_seed: int | None) -> work.QueryOutcome:
        return work.QueryOutcome(np.array([is_kept.sum(), np.nan], np.float32), np.array([True, False]))


def _retrainings(seed: int) -> list[work.Retraining]:
    return [work.Retraining("subset-0", (seed, seed + 2)), work.Retraining("subset-1", (seed + 1,))]


def _make_retrainings(folder: Path, seed: int) -> None:
    claim_folder(folder, {"seed": seed})
    for retraining in _retrainings(seed):
        work.retrain(_Retrainer(), retraining, folder)  # type: ignore[arg-type]


def _read_retrainings(folder: Path) -> Any:
    seed = 1 if folder.name == "other" else 0
    claim_folder(folder, {"seed": seed})
    outcomes = []
    for retraining in _retrainings(seed):
        if work.read_outcome(retraining, folder, [0, 1]) is None:
            work.retrain(_Retrainer(), retraining, folder)  # type: ignore[arg-type]
        outcomes.append(work.read_outcome(retraining, folder, [0, 1]))
    return seed, outcomes


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[SourceRow]:
    return [SourceRow("rows", number, row) for number, row in enumerate(rows, 1)]


def _make_data(folder: Path, seed: int) -> None:
    rows = [{"inputs": f"{place} lies in", "targets": f"land {seed}", "facts": [place]} for place in ("Oslo", "Rome")]
    queries = [{"inputs": "Oslo lies in", "targets": f"land {seed}", "fact": "Oslo"}]
    write_corpus(folder / "corpus", _rows(rows), _rows(queries))
    MappedTables(folder / "corpus", ("train", "queries")).make()


def _read_data(folder: Path) -> Any:
    if whole_manifest(folder / "corpus", CORPUS_FORM) is None:
        raise ValueError("it is made anew")
    tables = MappedTables(folder / "corpus", ("train", "queries"))
    tables.make()
    return [tables.open(name)[:] for name in ("train", "queries")]


def _make_kept(folder: Path, seed: int) -> None:
    """What is kept under a key: another seed has another one, so its files are no answer."""
    found: Any = {
        "rule": "paper", "query_ids": [3, seed], "asked": 4, "right_at_last": 2, "known_at_first": 0, "snapshots": [],
        "key": f"key {seed}",
    }  # fmt: skip
    keep_learned(folder, {"paper": found})
    pools = CandidatePools(np.array([3, 4]), np.array([0, 2, 3]), np.array([7, 9, 8]), PoolSettings(seed=2))
    pools.write(folder / "pools.parquet")  # the same for each seed: its name would be another one


def _read_kept(folder: Path) -> Any:
    pools = CandidatePools.open(folder / "pools.parquet")
    learned = kept_learned(folder).get("paper")
    key = "key 1" if folder.name == "other" else "key 0"
    if learned is None or learned["key"] != key:
        raise ValueError("they are found anew")
    return learned, pools


def _make_given(folder: Path, seed: int) -> None:
    (folder / "queries.jsonl").write_text(
        json.dumps({"id": f"q{seed}", "inputs": "Oslo lies in", "targets": "Norway", "answers": ["Norway"]}) + "\n"
    )
    (folder / "texts.csv").write_text(f"example_id,text\n7,seven {seed}\nname,eight\n")
    result = {
        "example_id": 0, "query_set": "s", "inputs_plaintext": "a", "targets_plaintext": "b", "proponents": ["t"],
        "proponent_ids": [seed], "proponent_scores": [0.5], "proponent_correct": [True],
    }  # fmt: skip
    (folder / "results.jsonl").write_text(json.dumps(result) + "\n")
    (folder / "config.yaml").write_text(f"model: {{class_path: a.B}}\ndata: [1, {seed}]\n")


def _read_given(folder: Path) -> Any:
    key, rows = read_texts(folder / "texts.csv")
    results = list(read_results(folder / "results.jsonl"))
    return read_queries(folder / "queries.jsonl"), key, list(rows), results, read_yaml(folder / "config.yaml")


def _stored(make: Callable[[Path, int], None], read: Callable[[Path], Any], has_digests: bool = True) -> StoredFormat:
    return StoredFormat(make, read, has_digests)


# By name, for the table of the fuzz test.
STORED_RUNS = {
    "snapshot": _stored(_make_snapshot, _read_snapshot),
    "gradient index": _stored(_make_index, _read_index),
    "causal traces": _stored(_make_traces, _read_traces),
    "retrainings": _stored(_make_retrainings, _read_retrainings),
    "data": _stored(_make_data, _read_data),
    "learned queries and pools": _stored(_make_kept, _read_kept),
    "files of users": _stored(_make_given, _read_given, has_digests=False),
}
