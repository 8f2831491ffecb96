"""What ``ftrace show`` is given, as sources of scores: stores, runs, files of results, and texts to join."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ftrace.commands.options import add_trust
from ftrace.commands.stores import open_with_kind, short_names
from ftrace.data import read_texts
from ftrace.evaluation.results import read_results
from ftrace.evaluation.results.files import is_result_file
from ftrace.run_folder import is_run, newest_run, stores_in
from ftrace.scores import EXAMPLE_ID, QUERY_ID, ScoreStore, Texts, show_command
from ftrace.scores.store_files import MANIFEST
from ftrace.views import Listed, ListedQuery, ListedSource, Source, StoreSource
from ftrace.views.words import SENTINEL

_GENERATIONS = "_generations"  # "8b_generations" in TrackStar's results: what a model of that size answered
_TEXTS = ("answers", "fact", "proponent_ids", "name", "said")  # which mean something else in texts of queries


@dataclass(frozen=True)
class Opened:
    """Sources of scores, and what belongs to them.

    Args:
        sources: The sources, in the order in which they were given.
        run: The run that the first store belongs to; None if none does.
        others: Names of further stores of that run, if only the run was given.
        side_by_side: The command that shows all of them.
        results: The files of results, by the names of their sources.
        trust: As :class:`ftrace.runs.Run` takes it, of the run.
    """

    sources: list[Source]
    run: Path | None
    others: list[str]
    side_by_side: str = ""
    results: Mapping[str, Path] = field(default_factory=dict)
    trust: bool = False


def add_source_options(command: ArgumentParser) -> None:
    """Add the options that say more of the sources: the run, the kind of scores, texts."""
    command.add_argument(
        "--run", type=str | None, default=None,
        help="The run that the stores belong to, or the folder that its versions are in: the newest is taken.",
    )  # fmt: skip
    command.add_argument(
        "--kind", type=str | None, default=None,
        help="Which kind of scores, of stores that have several; default: learning, or dot, or the first.",
    )  # fmt: skip
    command.add_argument(
        "--texts", type=str, nargs="+", default=None, metavar="FILE",
        help="Files of texts to join by id (.jsonl, .csv, .parquet): rows with example_id or query_id, text, and "
        "whatever else is known.",
    )  # fmt: skip
    command.add_argument(
        "--check", action="store_true",
        help="Verify every byte of the stores first; else what is read of them, as it is read.",
    )  # fmt: skip
    add_trust(command)


def open_sources(
    names: Sequence[str],
    run: str | None,
    kind: str | None,
    texts: Sequence[str] = (),
    *,
    whole_runs: bool = False,
    check: bool = False,
    trust: bool = False,
) -> Opened:
    """Open what is to be shown.

    Args:
        names: FOLDER[:KIND] of stores, or their names in the run's folder; folders of runs; files of results.
        run: The run's folder, or the one that its versions are in.
        kind: The kind of scores of stores that are given without; default: the one to rank by.
        texts: Files of texts, which go before those of the stores.
        whole_runs: Whether a run stands for all of its stores; otherwise for the first, its online scores.
        check: Whether every byte of the stores is verified.
        trust: As :class:`ftrace.runs.Run` takes it, of the run.

    Raises:
        ValueError: If there is nothing to show, a store is named twice, or something can't be read.
        FileNotFoundError: If there is no such store or file.
    """
    of_run = None if run is None else newest_run(run)
    if of_run is not None and not is_run(of_run):
        raise ValueError(f"run: {str(run)!r} is not the folder of a run: there is no config.yaml in it")
    if not names and run is None:
        raise ValueError("stores: expected a score store, a run or a file of results, found none")
    found = [_find(name, of_run) for name in names] if names else [_first_of(of_run)]
    given = [store for each in found for store in each.with_others()] if whole_runs else found
    others = given[0].others if len(given) == 1 else []
    kinds = list(dict.fromkeys(known for each in given if each.store is not None for known in each.store.kinds))
    if kind is not None and kind not in kinds:
        raise ValueError(
            f"kind: expected one of the kinds of these stores, {', '.join(kinds) or 'none'}, found {kind!r}"
        )
    for store in [each.store for each in given if each.store is not None and check]:
        for _ in store.checked_files():
            pass
    joined = _read_texts(texts)
    called = {path: name for name, path in short_names(list({each.path.resolve(): 0 for each in given})).items()}
    sources: list[Source] = []
    results: dict[str, Path] = {}
    for each in given:
        name = called[each.path.resolve()]
        if each.store is None:
            sources.append(_results(each.path, name))
            results[sources[-1].name] = each.path
        else:
            sources.append(StoreSource(each.store.with_texts(**joined), each.kind or kind, name))
    if len({(each.path.resolve(), source.kind) for each, source in zip(given, sources, strict=True)}) < len(given):
        raise ValueError(f"stores: expected each once, found {list(names)}")
    stores = [each.path for each in given if each.store is not None]
    belongs_to = of_run or next((path.resolve().parent for path in stores if is_run(path.resolve().parent)), None)
    names_of_others = [path.name for path in others]
    return Opened(sources, belongs_to, names_of_others, show_command(*stores, *others), results, trust)


@dataclass(frozen=True)
class _Given:
    """A store with the kind that was named, or a file of results.

    If a run was named, it is the first of its stores, and there may be others.
    """

    path: Path
    store: ScoreStore | None = None
    kind: str | None = None
    others: Sequence[Path] = ()

    def with_others(self) -> list[_Given]:
        """Return this one and the other stores of the run."""
        return [replace(self, others=()), *(_Given(path, ScoreStore.open(path)) for path in self.others)]


def _find(name: str, of_run: Path | None) -> _Given:
    """Find what one argument names."""
    if is_result_file(name):
        return _Given(Path(name))
    folder = newest_run(of_run / name if of_run is not None and (of_run / name).is_dir() else name)
    if is_run(folder) or _is_of_stores(folder):
        return _first_of(folder)
    store, kind = open_with_kind(of_run, name)
    if kind is not None and kind not in store.kinds:
        raise ValueError(f"{store.path}: expected one of the kinds {', '.join(store.kinds)}, found {kind!r}")
    return _Given(store.path, store, kind)


def _is_of_stores(folder: Path) -> bool:
    """Tell whether a folder is no store itself, and holds stores."""
    return folder.is_dir() and not (folder / MANIFEST).exists() and bool(stores_in(folder))


def _first_of(run: Path | None) -> _Given:
    """Open the first store of a run."""
    assert run is not None
    stores = stores_in(run)
    if not stores:
        raise ValueError(f"{run}: expected score stores in the run's folder, found none. Trace it, or score it")
    return _Given(stores[0], ScoreStore.open(stores[0]), others=stores[1:])


def _read_texts(files: Sequence[str]) -> dict[str, Texts]:
    """Read files of texts: of examples, of queries, or of both."""
    if not files:
        return {}
    texts: dict[str, Texts] = {}
    for file in files:
        key, rows = read_texts(Path(file))
        name = {EXAMPLE_ID: "examples", QUERY_ID: "queries"}[key]
        if name in texts:
            raise ValueError(f"texts: expected one file of {name}, found {file} too. Put all rows into one file")
        texts[name] = Texts.of(rows, key)
    return texts


def _results(file: Path, name: str) -> ListedSource:
    """Read a file of results."""
    if not file.is_file():
        raise FileNotFoundError(f"expected a file of results, found nothing at {str(file)!r}")
    return ListedSource(name.removesuffix(".gz").removesuffix(".jsonl"), list(listed_queries(read_results(file))))


def listed_queries(results: Any) -> Iterator[ListedQuery]:
    """Convert results of a search to what views show.

    Args:
        results: Each a :class:`ftrace.evaluation.results.RetrievalResult`.
    """
    for result in results:
        row = {
            **{name: value for name, value in result.annotations.items() if name not in _TEXTS},
            "text": result.prompt,
            "answer": SENTINEL.sub("", result.target).strip(),
            "query_set": result.query_set,
        }
        generated = next((value for name, value in row.items() if name.endswith(_GENERATIONS) and value), None)
        said = generated[0] if isinstance(generated, list) else generated  # the most likely first
        if isinstance(said, str):
            row["said"] = said
        proponents = result.proponents
        yield ListedQuery(
            result.example_id,
            row,
            Listed(proponents.ids, proponents.scores, proponents.texts, result.states_fact),
            Listed()
            if result.opponents is None
            else Listed(result.opponents.ids, result.opponents.scores, result.opponents.texts),
        )
