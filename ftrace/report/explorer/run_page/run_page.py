"""What a report shows of a run as a whole: evaluation, ledger, causal averages, manifests, and commands to test it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ftrace.report.explorer.format import Evaluation, ManifestPage, RunPage
from ftrace.report.explorer.run_page.causal_facts import causal_facts
from ftrace.report.explorer.run_page.claims import claims_of_results, claims_of_run, claims_of_stores, shown_path
from ftrace.report.explorer.run_page.evaluation_content import evaluation_of_results, evaluation_of_run
from ftrace.report.explorer.run_page.ledger_content import ledger_content
from ftrace.report.explorer.run_page.manifest_facts import manifest_facts
from ftrace.views import ListedSource, Source, StoreSource


def make_run_page(
    sources: Sequence[Source], run: Path | None = None, results: Mapping[str, Path] | None = None
) -> RunPage:
    """Make the page of a run, of stores without one, or of files of results. What can't be read is said, and no error.

    Args:
        sources: The sources of scores, in order.
        run: The folder of the run that the stores belong to; None if there is none.
        results: Files of results among the sources, by name.
    """
    of_stores = [source for source in sources if isinstance(source, StoreSource)]
    titles = {source.store.path: source.name for source in reversed(of_stores)}
    stores = {source.store.path: source.store for source in of_stores}
    name = None if run is None else _name(run, of_stores)
    claims = [] if run is None or name is None else claims_of_run(of_stores, run, name)
    claims += claims_of_stores(list(stores.values()))
    with_labels = [source.name for source in sources if isinstance(source, ListedSource) and source.has_labels]
    labelled = {name: file for name, file in (results or {}).items() if name in with_labels}
    claims += claims_of_results(list(labelled.values()))
    facts = None if run is None else causal_facts(run)
    manifests: list[ManifestPage] = [
        {"title": titles[path], "facts": manifest_facts(store)} for path, store in stores.items()
    ]
    return {
        "folder": name,
        "evaluation": _evaluation(run, results or {}, labelled),
        "ledger": ledger_content(list(stores.values())),
        "causal": None if facts is None else {"facts": facts},
        "manifests": manifests,
        "claims": claims,
    }


def _evaluation(run: Path | None, results: Mapping[str, Path], labelled: Mapping[str, Path]) -> Evaluation | None:
    """Return the evaluation of the run, else that of the files of results, and say what is not in it."""
    of_run = None if run is None else evaluation_of_run(run)
    evaluation = of_run or (evaluation_of_results(labelled) if labelled else None)
    if evaluation is None:
        return None
    notes = [f"{name}: no labels say which examples state a fact" for name in results if name not in labelled]
    if of_run is not None and labelled:
        notes.append("not in this table: the files of results, which ftrace evaluate compares")
    return {**evaluation, "notes": [*evaluation["notes"], *notes]}


def _name(run: Path, sources: Sequence[StoreSource]) -> str:
    """Return how commands name a run: as the user named it, or the folder of its stores."""
    for source in sources:
        folder = source.store.path.parent
        if run.is_absolute() and not folder.is_absolute() and folder.resolve() == run.resolve():
            return shown_path(folder)
    return shown_path(run)
