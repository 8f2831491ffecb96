"""``ftrace evaluate FILE.jsonl ...``: files of retrieved proponents, in the format of TrackStar's released results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ftrace.arguments import Name, Positive, Seed, checked
from ftrace.commands.stores import short_names
from ftrace.console import PlainConsole
from ftrace.evaluation.results import evaluate_results, render_result_groups, render_results, write_result_tables
from ftrace.evaluation.results.files import RESULT_SUFFIXES, is_result_file
from ftrace.evaluation.results.metrics import PRECISION_AT, RESULTS_BY, ResultsBy
from ftrace.scores import show_command


def names_of_results(names: Sequence[str]) -> bool:
    """Tell files of results from score stores.

    Raises:
        ValueError: If some are and some aren't.
    """
    files = [name for name in names if is_result_file(name)]
    if files and len(files) < len(names):
        rest = [name for name in names if name not in files]
        raise ValueError(
            f"expected score stores, or files of results ({', '.join(RESULT_SUFFIXES)}), found both: {rest} and "
            f"{files}. Compare them separately: a file knows its retrieved proponents only"
        )
    return bool(files)


@checked
def compare_results(
    files: Sequence[str],
    precision_at: Sequence[Positive] | None = None,
    against: Name | None = None,
    by: str | None = None,
    seed: Seed = 0,
    output_dir: Name | None = None,
) -> None:
    """Compare files of results: one table, over the queries that all of them have.

    Args:
        files: The files.
        precision_at: How many of the first proponents to take the precision of.
        against: The file to take paired differences to; default: the first.
        by: Also print the metrics by this field.
        seed: Of resampling.
        output_dir: Where the tables go; default: beside the first file.

    Raises:
        ValueError: If a file is missing, named twice or damaged, or no query has the field.
    """
    paths = [Path(name) for name in files]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"expected a file of results, found nothing at {path}")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"expected each file once, found {list(files)}")
    known_by = _known_by(by)
    evaluation = evaluate_results(short_names(paths), precision_at or PRECISION_AT, against, seed)
    groups = evaluation.groups(known_by) if known_by else []
    if known_by and not groups:
        raise ValueError(f"by: expected results with a field {known_by!r}, but no query that is compared has one")
    console = PlainConsole()
    console.print(render_results(evaluation))
    if groups:
        console.print()
        console.print(render_result_groups(evaluation, groups))
    default = paths[0].with_name(f"{paths[0].name.split('.jsonl')[0]}-evaluation")
    written = write_result_tables(evaluation, Path(output_dir) if output_dir else default)
    console.print(f"\nWrote {', '.join(file.name for file in written)} to {written[0].parent}", soft_wrap=True)
    console.print(f"Query by query: {show_command(*paths)}", soft_wrap=True)


def _known_by(by: str | None) -> ResultsBy | None:
    for known in RESULTS_BY:
        if by == known:
            return known
    if by is not None:
        raise ValueError(f"by: expected one of {list(RESULTS_BY)} for files of results, found {by!r}")
    return None
