"""``ftrace tail-patch``: whether the examples that methods find raise the probability of what they are found for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse import ArgumentParser

from ftrace.arguments import Count, Name, Positive, PositiveNumber, checked
from ftrace.commands.options import number_of_bytes, take
from ftrace.commands.query_choice import QueryChoice
from ftrace.commands.stores import add_stores, open_stores_of_run
from ftrace.console import PlainConsole
from ftrace.evaluation.stores import check_finite, row_name
from ftrace.evaluation.tail_patch import (
    ExampleKinds,
    TailPatchTable,
    notes_on_rises,
    random_examples,
    render_tail_patch,
    some_proponents,
    summarize_rises,
    write_tail_patch,
)
from ftrace.files.claims import claimed
from ftrace.renamed import use_new_names
from ftrace.runs import Run
from ftrace.scores import ScoreStore

RANDOM, PROPONENTS = "random examples", "ground truth"


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: several stores and kinds without brackets."""
    add_stores(command, required=False)  # at least one, by --store too
    command.add_argument("--store", nargs="+", action="extend", type=str, default=None, help=argparse.SUPPRESS)
    command.add_argument("-k", "--k", type=int, default=10, help="How many examples of each query.")
    command.add_argument(
        "--kinds", nargs="+", type=str,
        help="Which kinds of scores, of stores that have several; default: all.",
    )  # fmt: skip
    command.add_argument("--kind", nargs="+", type=str, default=None, help=argparse.SUPPRESS)
    command.add_function_arguments(patch_stores, skip={"stores", "run", "k", "kinds", "choice", "trust"})
    command.add_class_arguments(QueryChoice)


def command(**options: Any) -> None:
    """Take one step on each of the best examples of each query, and say how much likelier the answer becomes."""
    renamed = {"store": "stores", "kind": "kinds"}
    options = use_new_names("ftrace tail-patch", options, renamed, {"stores": [], "kinds": None})
    if not options["stores"]:
        raise ValueError("stores: expected at least one score store, found none")
    choice = take(QueryChoice, options)
    patch_stores(**options, choice=choice)


@checked
def patch_stores(
    stores: Sequence[Name],
    run: Name | None = None,
    k: Positive = 10,
    kinds: Sequence[Name] | None = None,
    snapshot: Literal["last", "first"] | Count = "last",
    optimizer: Literal["sgd", "adam"] | None = None,
    learning_rate: PositiveNumber | None = None,
    choice: QueryChoice = QueryChoice(),  # noqa: B008
    by: Literal["kind"] | None = None,
    memory_budget: Positive | Name = "1GiB",
    output_dir: Name | None = None,
    trust: bool = False,
) -> None:
    """Take one step on each of the best examples of each query, and say how much likelier the answer becomes.

    Args:
        stores: Folders of score stores, or their names in the run's folder.
        run: The run that they belong to; default: the folder that the first store is in.
        k: How many examples of each query.
        kinds: Which kinds of scores, of stores that have several; default: all.
        snapshot: Where steps begin: the "last" snapshot, the "first", or the one after so many steps.
        optimizer: What takes the step: "sgd", or "adam" with the snapshot's second moments; default: as the run.
        learning_rate: Its learning rate; default: the run's peak rate divided by its batch size, which is an example's
            own part in a training step.
        choice: For which queries. Its seed is also that of random examples, and of resampling.
        by: "kind": say what kind of examples they are, as is done wherever the data tell; an error where they don't.
        memory_budget: What weights and activations may take, such as "500MiB". Results don't depend on it.
        output_dir: Where the files go; default: "tail-patch" in the run's folder.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    budget, seed = number_of_bytes("memory_budget", memory_budget), choice.seed
    of_run, opened = open_stores_of_run(stores, run, trust)
    scored = _rows(opened, kinds)
    from ftrace.commands.step_rule import step_rule  # imports torch
    from ftrace.evaluation.tail_patch import tail_patch

    folder = of_run.snapshot(snapshot)
    model = of_run.model_at(folder)
    rule, settings = step_rule(of_run, model, folder, optimizer, learning_rate)
    asked = choice.evaluated(of_run, any_data=True)
    query_ids = asked.query_ids.tolist()
    example_kinds, notes = _kinds(of_run, by)
    notes = (f"{RANDOM}, {PROPONENTS}: {k} drawn from all examples, and from the query's proponents", *notes)
    picks = {name: _top(store, kind, query_ids, k) for name, (store, kind) in scored.items()}
    picks[RANDOM] = random_examples(query_ids, len(of_run.tables.train_rows), k, seed)
    if any(map(len, asked.proponents)):
        picks[PROPONENTS] = some_proponents(asked, k, seed)
    pairs = [(query, example) for row in picks.values() for query, ids in row.items() for example in ids.tolist()]
    out = Path(output_dir) if output_dir else of_run.folder / "tail-patch"
    with claimed(out, "ftrace tail-patch"):
        patched = tail_patch(model, of_run.data, np.array(pairs), rule, budget)
        rows, probability = summarize_rises(patched, picks, asked, RANDOM, example_kinds, seed)
        notes = (*notes, *notes_on_rises(patched, picks, asked))
        table = TailPatchTable(rows, probability, asked, k, folder.name, str(rule), settings, seed, notes)
        console = PlainConsole()
        console.print(render_tail_patch(table))
        files = write_tail_patch(table, patched, out, example_kinds)
    console.print(f"\nWrote {', '.join(file.name for file in files)} to {files[0].parent}", soft_wrap=True)


def _rows(stores: Mapping[str, ScoreStore], kinds: Sequence[str] | None) -> dict[str, tuple[ScoreStore, str]]:
    """Name each row's store and kind. A store of a single kind is taken with it."""
    known = sorted({kind for store in stores.values() for kind in store.kinds})
    unknown = [kind for kind in kinds or () if kind not in known]
    if unknown:
        raise ValueError(f"kinds: expected some of {known}, found {unknown[0]!r}")
    rows: dict[str, tuple[ScoreStore, str]] = {}
    for name, store in stores.items():
        of_store = [kind for kind in store.kinds if kinds is None or kind in kinds or len(store.kinds) == 1]
        if not of_store:
            raise ValueError(f"kinds: {store.path} has none of {list(kinds or ())}, but {list(store.kinds)}")
        rows |= {row_name(name, kind): (store, kind) for kind in of_store}
    taken = rows.keys() & {RANDOM, PROPONENTS}
    if taken:
        raise ValueError(f"stores: {min(taken)!r} is the name of a row for reference. Rename the store's folder")
    return rows


def _top(store: ScoreStore, kind: str, query_ids: Sequence[int], k: int) -> dict[int, np.ndarray]:
    lacking = sorted(set(query_ids) - set(store.query_ids.tolist()))
    if lacking:
        raise ValueError(f"{store.path}: expected scores for each of the queries, found none for query {lacking[0]}")
    check_finite(store, kind, query_ids)
    return {query: store.top(query, k, kind)[0] for query in query_ids}


def _kinds(run: Run, by: Literal["kind"] | None) -> tuple[ExampleKinds | None, tuple[str, ...]]:
    try:
        return ExampleKinds(run.tables), ()
    except ValueError as error:
        if by == "kind":
            raise ValueError(f"by: {error}") from error
        return None, (str(error),)
