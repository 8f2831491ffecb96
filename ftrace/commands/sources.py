"""What ``ftrace show`` is given, as sources of scores: stores, runs, files of results, and texts to join."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftrace.commands.stores import open_with_kind, short_names
from ftrace.run_folder import is_run, newest_run, stores_in
from ftrace.scores import EXAMPLE_ID, QUERY_ID, ScoreStore, Texts, show_command
from ftrace.views import Listed, ListedQuery, ListedSource, Source, StoreSource

RESULT_SUFFIXES = (".jsonl", ".jsonl.gz")  # as of ftrace.evaluation.results, which imports torch
_SENTINEL = re.compile(r"<extra_id_\d+>")


@dataclass(frozen=True)
class Opened:
    """Sources of scores, and what belongs to them.

    Args:
        sources: The sources, in the order in which they were given.
        run: The run that the first store belongs to; None if none does.
        others: Names of further stores of that run, if only the run was given.
        side_by_side: The command that shows all of them.
    """

    sources: list[Source]
    run: Path | None
    others: list[str]
    side_by_side: str = ""


def open_sources(names: Sequence[str], run: str | None, kind: str | None, texts: Sequence[str] = ()) -> Opened:
    """Open what is to be shown.

    Args:
        names: FOLDER[:KIND] of stores, or their names in the run's folder; folders of runs; files of results.
        run: The run's folder, or the one that its versions are in.
        kind: The kind of scores of stores that are given without; default: the one to rank by.
        texts: Files of texts, which go before those of the stores.

    Raises:
        ValueError: If there is nothing to show, a store is named twice, or something can't be read.
        FileNotFoundError: If there is no such store or file.
    """
    of_run = None if run is None else newest_run(run)
    if of_run is not None and not is_run(of_run):
        raise ValueError(f"run: {str(run)!r} is not the folder of a run: there is no config.yaml in it")
    if not names and of_run is None:
        raise ValueError("stores: expected a score store, a run or a file of results, found none")
    opened: list[tuple[Path, ScoreStore | None, str | None]] = []
    others: list[Path] = []
    for name in names or [str(of_run)]:
        inside = bool(names) and of_run is not None and (of_run / name).is_dir()
        folder = newest_run(name)
        if name.endswith(RESULT_SUFFIXES):
            opened.append((Path(name), None, None))
        elif not inside and is_run(folder):
            first, *rest = stores_in(folder) or [None]
            if first is None:
                raise ValueError(
                    f"{name}: expected score stores in the run's folder, found none. Trace it, or score it"
                )
            opened.append((first, ScoreStore.open(first), None))
            others = [*others, *rest] if len(names) < 2 else []
        else:
            store, of_store = open_with_kind(of_run, name)
            opened.append((store.path, store, of_store))
    keys = [(path.resolve(), of_store or kind) for path, _, of_store in opened]
    if len(set(keys)) < len(keys):
        raise ValueError(f"stores: expected each once, found {list(names)}")
    given = _read_texts(texts)
    called = {
        path: name for name, path in short_names(list({path.resolve(): path for path, *_ in opened}.values())).items()
    }
    by_path = {path.resolve(): name for path, name in called.items()}
    sources: list[Source] = [
        _results(path, by_path[path.resolve()])
        if store is None
        else StoreSource(store.with_texts(**given), of_store or kind, by_path[path.resolve()])
        for path, store, of_store in opened
    ]
    stores = [path for path, store, _ in opened if store is not None]
    belongs_to = of_run or next((path.resolve().parent for path in stores if is_run(path.resolve().parent)), None)
    return Opened(sources, belongs_to, [path.name for path in others], show_command(*stores, *others))


def _read_texts(files: Sequence[str]) -> dict[str, Texts]:
    """Read files of texts: of examples, of queries, or of both."""
    if not files:
        return {}
    from ftrace.data.text_files import read_texts  # imports torch

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
    from ftrace.evaluation.results import read_results  # imports torch

    return ListedSource(name.removesuffix(".gz").removesuffix(".jsonl"), list(listed_queries(read_results(file))))


def listed_queries(results: Any) -> Iterator[ListedQuery]:
    """Convert results of a search to what views show.

    Args:
        results: Each a :class:`ftrace.evaluation.results.RetrievalResult`.
    """
    for result in results:
        row = {"text": result.prompt, "answer": _SENTINEL.sub("", result.target).strip()}
        proponents = result.proponents
        yield ListedQuery(
            result.example_id,
            row,
            Listed(proponents.ids, proponents.scores, proponents.texts, result.states_fact),
            Listed()
            if result.opponents is None
            else Listed(result.opponents.ids, result.opponents.scores, result.opponents.texts),
        )
