"""``ftrace search``: which examples of a gradient index taught a model what queries ask for."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ftrace.arguments import Count, Name, Positive, checked
from ftrace.commands.index_question import QuestionSettings
from ftrace.commands.options import add_old_names, add_trust, take
from ftrace.commands.query_choice import QueryChoice
from ftrace.index import OLD_SEARCH_OPTIONS, ApproximateSettings, SearchSettings, WhiteningSettings, read_manifest
from ftrace.renamed import use_new_names


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments: those of its settings as its own."""
    command.add_argument("-k", "--k", type=int, default=100, help="How many proponents, and opponents, of each query.")
    command.add_argument(
        "--queries", type=str | None, default="all",
        help='"all" of the run\'s queries, those "learned" by the end of training, or a file of queries, with "inputs" '
        'and "targets", as FactCorpus reads them.',
    )  # fmt: skip
    command.add_function_arguments(search, skip={"k", "question", "settings", "approximate", "trust"})
    add_trust(command)
    command.add_class_arguments(QuestionSettings, skip={"file", "choice"})
    command.add_class_arguments(QueryChoice, skip={"queries"})
    command.add_class_arguments(WhiteningSettings)
    command.add_class_arguments(SearchSettings, skip={"whitening"})
    command.add_argument(
        "--approximate", type=bool, default=False, help="Search approximately, with faiss, and measure what is missed."
    )
    command.add_class_arguments(ApproximateSettings)
    add_old_names(command, {"correct_queries": bool})


def command(**options: Any) -> None:
    """Find the strongest proponents and opponents of queries in a gradient index."""
    options = use_new_names("ftrace search", options, OLD_SEARCH_OPTIONS, asdict(SearchSettings()))
    given = options["queries"] if options["queries"] is not None else "all"
    options["queries"] = given if given in ("learned", "all") else "all"
    choice = take(QueryChoice, options)
    file = None if given in ("learned", "all") else given
    question = replace(take(QuestionSettings, options), choice=choice, file=file)
    settings = replace(take(SearchSettings, options), whitening=take(WhiteningSettings, options))
    approximate = take(ApproximateSettings, options)
    is_approximate = options.pop("approximate")
    search(**options, question=question, settings=settings, approximate=approximate if is_approximate else None)


@checked
def search(
    index: Name,
    question: QuestionSettings = QuestionSettings(),  # noqa: B008
    settings: SearchSettings = SearchSettings(),  # noqa: B008
    run: Name | None = None,
    k: Positive = 100,
    approximate: ApproximateSettings | None = None,
    against: Name | None = None,
    output_file: Name | None = None,
    show: Count = 2,
    trust: bool = False,
) -> None:
    """Find the strongest proponents and opponents of queries in a gradient index.

    Args:
        index: Folder of the index.
        question: What is asked.
        settings: How examples are scored.
        run: The run's folder, or the one that its versions are in; default: the run that the index was written of.
        k: How many of either.
        approximate: How to search approximately, with faiss; what is missed is measured. Default: exactly.
        against: FOLDER[:KIND] of a score store, such as online:dot, to measure how well scores agree with it.
        output_file: Where results go, as JSON lines in TrackStar's released format; default: results.jsonl in the
            index's folder.
        show: How many queries to print.
        trust: Whether classes of the run's config that aren't ftrace's own are followed.
    """
    if against is not None and question.file is not None:
        raise ValueError("against: expected the run's own queries, whose ids a score store knows, found a file")
    read_manifest(Path(index))  # before torch is imported, says whether there is an index
    from ftrace.commands.searching import search_index  # imports torch

    search_index(index, question, settings, run, k, approximate, against, output_file, show, trust)
