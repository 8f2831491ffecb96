"""What a report claims, and for each claim a command to copy that tests it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from ftrace.files.causal_settings import FORM, SETTINGS
from ftrace.files.digests import DamagedError
from ftrace.files.manifests import read_json, read_manifest
from ftrace.files.snapshot_files import SnapshotFiles
from ftrace.files.yaml_files import read_yaml
from ftrace.report.explorer.content.causal_content import FOLDER as CAUSAL
from ftrace.report.explorer.format import Claim
from ftrace.scores import ScoreStore
from ftrace.views import StoreSource

_OURS, _DATA = "ftrace.models.", "ftrace.data."  # classes that commands can load
_AS_TRAINED = ("adamw", "sgd")  # optimizers that tail-patch takes steps with
_RATE = 0.01  # of a step of SGD, where the run's own optimizer says nothing of it


class _Learned(TypedDict):
    query_ids: list[int]


class _LearnedByRule(TypedDict):
    paper: NotRequired[_Learned]
    last: NotRequired[_Learned]


def shown_path(path: Path) -> str:
    """Return how a command names a path: from the working directory if it is in there, else as it was given.

    A name that a command would take for an option or for nothing begins with ``./``.

    Example:
        >>> shown_path(Path.cwd() / "runs" / "a"), shown_path(Path("-a")), shown_path(Path("null"))
        ('runs/a', './-a', './null')
    """
    if path.is_absolute():
        for folder in (Path.cwd(), Path.cwd().resolve()):
            if path.is_relative_to(folder):
                path = path.relative_to(folder)
                break
    text = str(path)
    return f"./{text}" if text.startswith("-") or text == "null" else text


@dataclass(frozen=True)
class _Run:
    """A run, as far as commands depend on it.

    Args:
        name: How commands name its folder.
        folder: The folder.
        config: Its config.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]

    @property
    def can_be_loaded(self) -> bool:
        """Whether it has weights, of a model of ours."""
        has_weights = any(self.folder.glob("snapshots/step-*/snapshot.json"))
        return has_weights and _class(self.config, "model").startswith(_OURS) and bool(_class(self.config, "data"))

    @property
    def has_ground_truth(self) -> bool:
        """Whether its data say which examples state a query's fact, as far as that is known without reading them."""
        return _class(self.config, "data").startswith(_DATA) or (self.folder / "evaluation" / "table.json").exists()

    @property
    def nothing_learned(self) -> bool:
        """Whether it is known that no query was learned."""
        try:
            known = read_json(self.folder / "learned_queries.json", _LearnedByRule, digest=False)
        except (OSError, DamagedError):
            return False
        return not any(known[rule]["query_ids"] for rule in ("paper", "last") if rule in known)

    @property
    def steps_as_trained(self) -> bool:
        """Whether tail-patch takes steps with its optimizer, and the last snapshot has what that needs."""
        settings = self.config["model"].get("init_args")
        trained = settings.get("optimizer", _AS_TRAINED[0]) if isinstance(settings, dict) else _AS_TRAINED[0]
        last = max(self.folder.glob("snapshots/step-*/snapshot.json"))
        try:
            return trained in _AS_TRAINED and bool(SnapshotFiles(last.parent).facts["optimizers"])
        except ValueError:  # damaged
            return False


def claims_of_run(sources: Sequence[StoreSource], folder: Path, name: str) -> list[Claim]:
    """Return what a report claims of a run, and a command for each claim that this run can test.

    Args:
        sources: The scores in the report.
        folder: The run's folder.
        name: How commands name it.
    """
    run = _Run(name, folder, _read_config(folder))
    return list(_of_run(run, sources)) if run.can_be_loaded and sources else []


def claims_of_stores(stores: Sequence[ScoreStore]) -> list[Claim]:
    """Return what a report claims of stores by themselves, and a command for each claim."""
    with_ledger = next((store for store in stores if store.has_ledger), None)
    if with_ledger is None:
        return []
    return [
        _claim(
            "The numbers add up: scores, momentum and decay together are what the losses fell by.",
            "ftrace", "ledger", shown_path(with_ledger.path),
        )
    ]  # fmt: skip


def claims_of_results(files: Sequence[Path]) -> list[Claim]:
    """Return what a report claims of files of results with labels, and a command."""
    if not files:
        return []
    return [_claim(_FINDS, "ftrace", "evaluate", *map(shown_path, files))]


_FINDS = "The methods find examples that state the query's fact, rather than any."


def _of_run(run: _Run, sources: Sequence[StoreSource]) -> Iterator[Claim]:
    stores = {source.store.path: source.store for source in sources}
    names = [_in_run(run, store) for store in stores.values()]
    many = list(dict.fromkeys(source.kind for source in sources if len(source.store.kinds) > 1))
    kinds = ["--kinds", *many] if many and not any(kind.startswith("-") for kind in many) else []  # default: all
    of_all = ["--queries=all"] if run.nothing_learned else []
    step = [] if run.steps_as_trained else ["--optimizer=sgd", f"--learning_rate={_RATE}"]
    yield _claim(
        "The strongest examples lowered the query's loss: a training step on each of them makes the answer likelier, "
        "and a step on random examples does not.",
        "ftrace", "tail-patch", *names, f"--run={run.name}", *step, *of_all, *kinds,
    )  # fmt: skip
    complete = [name for name, store in zip(names, stores.values(), strict=True) if _is_complete(store)]
    if run.has_ground_truth and complete:
        yield _claim(_FINDS, "ftrace", "evaluate", *complete, f"--run={run.name}", *of_all)
        yield _claim(
            "The scores predict what happens without the data: the model is trained again on random halves of the "
            "facts, and without each query's ten strongest examples. This takes as long as a hundred trainings.",
            "ftrace", "counterfactual", *complete, f"--run={run.name}", "--leave_out_k=10", *of_all,
        )  # fmt: skip
    yield _of_tracing(run, sources)


def _of_tracing(run: _Run, sources: Sequence[StoreSource]) -> Claim:
    """Return the claim of causal tracing. What was traced is traced again with other noise, in a folder of its own."""
    claim = "This is where the model keeps the fact: it has yet to be traced."
    window, options = 1, []
    try:
        settings = read_manifest(run.folder / CAUSAL / SETTINGS, FORM)
        window = int(settings["settings"]["window"])
        kind = "uniform" if settings["noise"]["kind"] != "uniform" else "gaussian"
    except (OSError, ValueError):
        pass  # not traced, or damaged: nothing to agree with
    else:
        claim = "This is where the model keeps the fact: with another kind of noise on the subject the map is the same."
        options = [f"--noise.kind={kind}", f"--output_dir={run.name}/{CAUSAL}-{kind}"]
    if run.nothing_learned:
        options.append("--only_correct=false")
    by_layer = next((source for source in sources if "layer" in source.store.breakdown_of(source.kind)), None)
    if by_layer is not None and window == 1:  # a window over all layers can't be joined to scores by layer
        options.append(f"--scores={_in_run(run, by_layer.store)}:{by_layer.kind}")
    return _claim(claim, "ftrace", "causal-trace", f"--run={run.name}", f"--window={window}", *options)


def _is_complete(store: ScoreStore) -> bool:
    """Whether it has a score of each training row for each query, as far as its ids tell."""
    return not store.has_candidates and np.array_equal(store.example_ids, np.arange(len(store.example_ids)))


def _in_run(run: _Run, store: ScoreStore) -> str:
    """Name a store by its name in the run's folder, or by its path."""
    inside = store.path.resolve().parent == run.folder.resolve()
    return shown_path(Path(store.path.resolve().name)) if inside else shown_path(store.path)


def _claim(claim: str, *command: str) -> Claim:
    return {"claim": claim, "command": shlex.join(command)}


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        return read_yaml(folder / "config.yaml")
    except ValueError:
        return {}


def _class(config: Mapping[str, Any], section: str) -> str:
    described = config.get(section)
    return str(described.get("class_path", "")) if isinstance(described, dict) else ""
