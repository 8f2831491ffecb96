"""``ftrace report``: the explorer of scores, one file or folder that opens by double-click."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console

from ftrace.arguments import Count, Name, Positive, checked
from ftrace.commands.report_additions import additions_of
from ftrace.commands.report_queries import choose_queries
from ftrace.commands.sources import Opened, add_source_options, open_sources
from ftrace.console import PlainConsole
from ftrace.files.claims import claimed
from ftrace.progress import track
from ftrace.report.explorer.content.content import Content, ContentSettings
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.report.explorer.page.chunks import encode_chunk, island
from ftrace.report.explorer.page.writing import (
    MAX_FILE_BYTES,
    MAX_FOLDER_BYTES,
    check_place,
    report_paths,
    write_report,
)
from ftrace.shown_text import counted
from ftrace.views import StoreSource

_NAME = "report.html"
_SURE = 1.1  # an estimate that is larger than the limit by this is not tried


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "stores", nargs="*", type=str, default=[], metavar="STORE[:KIND]|RUN|RESULTS",
        help="Folders of score stores, side by side; with --run, also their names in it. A run's folder stands for all "
        "stores in it, and a .jsonl file for results of ftrace search or TrackStar's released ones.",
    )  # fmt: skip
    add_source_options(command)
    command.add_argument(
        "--out", type=str | None, default=None,
        help="Where to write it. A name that ends in .html is one file, any other is a folder. Default: report.html in "
        "the run's folder, or beside the first store or file; a folder of that name if it is larger than 20 MB.",
    )  # fmt: skip
    command.add_argument(
        "--figures", type=str | None, default=None, metavar="DIR",
        help="Draw the views for papers, as PNG and PDF: the run and a few queries that show most, or those of "
        "--queries. The page is then written only with --out.",
    )  # fmt: skip
    command.add_argument("-k", "--k", type=int, default=100, help="How many proponents of each store.")
    command.add_argument(
        "--opponents", type=int, default=20, help="How many opponents of each store, of those with a negative score."
    )
    command.add_argument(
        "--queries", type=str, nargs="+", default=None, metavar="ID|NAME|NUMBER",
        help="The queries, by ids or names; a single number is how many, drawn evenly; '#17' is the query with this "
        "id. Default: all, up to 2,000.",
    )  # fmt: skip
    command.add_argument(
        "--tokens", type=int, default=10,
        help="For how many of the strongest examples of each query scores are told token by token, by the run's "
        "model; 0: for none, and no model is loaded.",
    )  # fmt: skip
    command.add_argument(
        "--redact", action="store_true",
        help="Leave out all texts, answers and names: ids alone tell examples and queries.",
    )  # fmt: skip


@checked
def command(
    stores: Sequence[Name],
    run: Name | None = None,
    kind: Name | None = None,
    texts: Sequence[Name] | None = None,
    out: Name | None = None,
    figures: Name | None = None,
    k: Positive = 100,
    opponents: Count = 20,
    queries: Sequence[Name] | None = None,
    tokens: Count = 10,
    redact: bool = False,
    check: bool = False,
    trust: bool = False,
) -> None:
    """Make the explorer of scores: one file or folder that opens by double-click, without a network."""
    opened = open_sources(stores, run, kind, texts or (), whole_runs=True, check=check, trust=trust)
    path = Path(out) if out is not None else _home(opened) / _NAME
    single_file = None if out is None else out.endswith(".html")
    wants_page = out is not None or figures is None
    if wants_page:
        check_place(path, single_file=single_file)
    if figures is not None and Path(figures).is_file():
        raise ValueError(f"figures: expected the name of a folder, found the file {figures!r}")
    content = make_content(opened, queries, k, opponents, tokens, is_redacted=redact)
    say = partial(PlainConsole().print, soft_wrap=True)
    if figures is not None:
        pictures = draw(content, Path(figures), only_chosen=queries is not None)
        say(f"Wrote {counted(len(pictures), 'picture')} to {figures}: {', '.join(file.name for file in pictures)}")
    if wants_page:
        is_replaced = any(place.exists() for place in report_paths(path))
        written = write(content, path, single_file=single_file)
        place = ", in place of an earlier one" if is_replaced else ""
        say(f"The report is {written}{place}\nOpen it by double-click, or as {written.resolve().as_uri()}")


def report_of_run(folder: Path, trust: bool = False) -> Path:
    """Write the explorer of a run into its folder, with all of its stores.

    Args:
        folder: The run's folder.
        trust: As :class:`ftrace.runs.Run` takes it.

    Returns:
        What to open.

    Raises:
        ValueError: If something else is in its place, or it is too large.
    """
    opened = open_sources([str(folder)], None, None, whole_runs=True, trust=trust)
    check_place(folder / _NAME)
    return write(make_content(opened), folder / _NAME)


def make_content(
    opened: Opened,
    queries: Sequence[str] | None = None,
    k: int = 100,
    opponents: int = 20,
    tokens: int = 10,
    *,
    is_redacted: bool = False,
) -> Content:
    """Rank examples for the chosen queries; what else is known is found when the size is known to be allowed.

    Args:
        opened: Sources of scores, and what belongs to them.
        queries: As :func:`choose_queries` takes them; default: all.
        k: How many proponents of each source.
        opponents: How many opponents of each source.
        tokens: For how many of the strongest examples scores are told token by token.
        is_redacted: Whether texts are left out.
    """
    chosen, limits = choose_queries(opened.sources, queries)
    ranked = RankedQueries(opened.sources, chosen, k, opponents, track(chosen, "ranking", len(chosen)))
    limits = [*limits, *_other_kinds(opened)]
    count = 0 if is_redacted else tokens
    settings = ContentSettings(is_redacted=is_redacted)
    return Content(
        ranked, _title(opened), settings, lambda: additions_of(opened, ranked, limits, count, is_redacted=is_redacted)
    )


def write(content: Content, path: Path, *, single_file: bool | None = None) -> Path:
    """Write a report, and say before how large it becomes.

    Args:
        content: Of the report.
        path: As :func:`write_report` takes it.
        single_file: Likewise.

    Raises:
        ValueError: If it would be too large.
    """
    console = PlainConsole(stderr=True)
    size = content.estimated_size(lambda name, chunk: len(island(name, encode_chunk(chunk))))
    _check_size(size, single_file)
    form = "one file" if single_file or (single_file is None and size <= MAX_FILE_BYTES) else "a folder"
    _tell(console, f"{_contents(content)}: about {_megabytes(size)}, as {form}")
    _ = content.additions  # with bars of their own
    chunks = track(content.chunks(), "writing", content.num_chunks)
    return write_report(path, chunks, title=content.title, single_file=single_file)


def draw(content: Content, folder: Path, *, only_chosen: bool) -> list[Path]:
    """Draw pictures of the run and of some queries.

    Args:
        content: Of the report.
        folder: Where they go.
        only_chosen: Whether all of the report's queries are drawn, or a few that show most.

    Returns:
        The PNG of each; a PDF is beside it.
    """
    from ftrace.report.figures import choose_queries as choose_telling  # imports matplotlib
    from ftrace.report.figures import write_figures

    _ = content.additions
    of_all = range(content.num_queries)
    head = content.head(track(of_all, "reading", len(of_all)))
    places = of_all if only_chosen else choose_telling(head["queries"])
    with claimed(folder, "ftrace report", wait=True):  # all pictures are of one report
        files = write_figures(folder, head, [content.query(place) for place in places])
    return [file for file in files if file.suffix == ".png"]


def _other_kinds(opened: Opened) -> Iterator[str]:
    """Say which kinds of scores of a store are not in the report."""
    stores = {source.name: source.store for source in opened.sources if isinstance(source, StoreSource)}
    for name, store in stores.items():
        shown = [source.kind for source in opened.sources if source.name == name]
        others = [kind for kind in store.kinds if kind not in shown]
        if others:
            yield (
                f"{name}: of its kinds of scores, {', '.join(shown)} is here, and not {', '.join(others)}; "
                f"STORE:{others[0]} would add one."
            )


def _home(opened: Opened) -> Path:
    """Return the folder that a report belongs to: the run's, or that of the first store or file of results."""
    if opened.run is not None:
        return opened.run
    first = opened.sources[0]
    return (first.store.path if isinstance(first, StoreSource) else opened.results[first.name]).parent


def _title(opened: Opened) -> str:
    """Name the report by its run, or else by its stores and files."""
    if opened.run is not None:
        run = opened.run.resolve()
        return f"{run.parent.name}/{run.name}" if run.name.startswith("version_") else run.name
    names = ", ".join(dict.fromkeys(source.name for source in opened.sources))
    return f"{_home(opened).resolve().name}/{names}".removeprefix("/")


def _check_size(size: int, single_file: bool | None) -> None:
    limit = MAX_FILE_BYTES if single_file else MAX_FOLDER_BYTES
    if size > _SURE * limit:
        form, other = ("one file", "; or leave out .html to write a folder") if single_file else ("a report", "")
        raise ValueError(
            f"expected {form} of up to {_megabytes(limit)}, found that it would take about {_megabytes(size)}. Choose "
            f"fewer queries (--queries 200), list fewer examples (-k 20), or leave out texts (--redact){other}"
        )


def _contents(content: Content) -> str:
    return f"{counted(content.num_queries, 'query', 'queries')} and {counted(content.num_examples, 'example')}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2g} MB" if size < 1e7 else f"{size / 1e6:,.0f} MB"


def _tell(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True)
