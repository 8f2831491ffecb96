"""``ftrace show``: who taught a query, with the texts of all that takes part."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from jsonargparse import ArgumentParser
from rich.console import Console

from ftrace.arguments import Count, Name, Positive, checked
from ftrace.commands.said import said_in_run
from ftrace.commands.sources import Opened, add_source_options, open_sources
from ftrace.console import PlainConsole
from ftrace.run_folder import UntrustedError
from ftrace.shown_text import counted, plain
from ftrace.views import (
    CUT,
    QueryLine,
    QueryView,
    Said,
    Source,
    all_queries,
    find_query,
    make_query_line,
    make_query_view,
    print_view,
    query_rows,
    render_queries,
    render_query,
    search_queries,
    title_of,
)

_REMEDY = "Join texts with --texts FILE: rows with example_id (or query_id), text and answer"
_LINES_AROUND = 8  # of the screen, beside a list of queries
_FEWEST = 3  # queries of a list


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "stores", nargs="*", type=str, default=[], metavar="STORE[:KIND]",
        help="Folders of score stores, side by side; with --run, also their names in it. A run's folder stands for its "
        "online scores, and a .jsonl file for results of ftrace search.",
    )  # fmt: skip
    command.add_argument(
        "--query", type=str | None, default=None, metavar="ID|NAME", help="The query; default: a list of the queries."
    )
    command.add_argument(
        "--search", type=str, nargs="+", default=None, metavar="WORD",
        help="Show the query that has all of these words in its prompt or answer; if several have, list them and show "
        "the first.",
    )  # fmt: skip
    command.add_argument("-k", "--k", type=int, default=10, help="How many proponents of each store.")
    command.add_argument(
        "--opponents", type=int, default=3, help="How many opponents of each store, of those with a negative score."
    )
    add_source_options(command)


@checked
def command(
    stores: Sequence[Name],
    query: str | None = None,
    search: Sequence[str] | None = None,
    k: Positive = 10,
    opponents: Count = 3,
    kind: Name | None = None,
    texts: Sequence[Name] | None = None,
    run: Name | None = None,
    check: bool = False,
    trust: bool = False,
) -> None:
    """Show queries and who taught them: texts, scores, what the model said; several stores side by side."""
    if query is not None and search is not None:
        raise ValueError("expected one of query and search, found both")
    console = PlainConsole()
    opened = open_sources(stores, run, kind, texts or (), check=check, trust=trust)
    shown = _Shown(opened, console, _again(stores, kind, texts, run, trust))
    if query is not None:
        shown.query(find_query(opened.sources, query), k, opponents)
    elif search is not None:
        hits = search_queries(opened.sources, search)
        if len(hits) > 1:
            shown.list(hits, f"{len(hits):,} queries have {' and '.join(map(repr, search))}; the first:")
            console.print()
        shown.query(hits[0], k, opponents)
    else:
        shown.overview()
    if opened.others and console.is_terminal:
        _tell(console, f"Also in this run: {', '.join(opened.others)}. Side by side: {opened.side_by_side}")


@dataclass(frozen=True)
class _Shown:
    """What is shown, and where."""

    opened: Opened
    console: Console
    again: str

    @property
    def sources(self) -> Sequence[Source]:
        """The sources of scores."""
        return self.opened.sources

    def query(self, query_id: int, k: int, opponents: int) -> None:
        """Show a query with its strongest examples."""
        view = make_query_view(self.sources, query_id, k, opponents, self._said(query_id))
        print_view(render_query(view, self._cut, self._width), self.console)
        if view.lacks_texts:
            _tell(self.console, f"Not all texts are known, so that ids stand in. {_REMEDY}")
        if self._cut is not None and _has_long_text(view, self._cut):
            _tell(self.console, f"Texts are cut at {self._cut} characters; a pipe gets them whole.")

    def overview(self) -> None:
        """Show the first queries, and how to see more of one."""
        queries = all_queries(self.sources)
        if not queries:
            raise ValueError("expected scores for at least one query, found none in these stores")
        names = ", ".join(title_of(source.name, source.kind) for source in self.sources)
        first, *others = self.list(queries, f"{counted(len(queries), 'query', 'queries')}, by {names}")
        name = first.name
        is_typed = name is not None and plain(name) == name and not name.startswith("-")
        called = shlex.quote(name if name is not None and is_typed else str(first.query_id))
        rest = len(queries) - 1 - len(others)
        more = f"… and {rest:,} more. " if rest else ""
        search = " or --search WORDS" if first.prompt is not None else ""
        _tell(self.console, f"\n{more}One of them: {self.again} --query {called}{search}")
        if first.prompt is None:
            _tell(self.console, f"The texts of the queries aren't known. {_REMEDY}")

    def list(self, queries: Sequence[int], title: str) -> Sequence[QueryLine]:
        """List queries, as many as a screen holds or all in a pipe, and return them."""
        room = self.console.height - _LINES_AROUND if self.console.is_terminal else None
        first = queries[: None if room is None else max(_FEWEST, room)]
        rows = query_rows(self.sources, first)
        lines = [make_query_line(self.sources, query, row) for query, row in zip(first, rows, strict=True)]
        cut = self._cut and self._cut // 4
        while room is not None and len(lines) > _FEWEST:
            if len(self.console.render_lines(render_queries(lines, cut, self._width))) <= room:
                break
            lines.pop()
        _tell(self.console, f"{title}\n")
        print_view(render_queries(lines, cut, self._width), self.console)
        return lines

    @property
    def _cut(self) -> int | None:
        return CUT if self.console.is_terminal else None

    @property
    def _width(self) -> int | None:
        return self.console.width if self.console.is_terminal else None

    def _said(self, query_id: int) -> Said | None:
        """Return what the run's model said, if texts don't know and the run does; asks it once."""
        row = query_rows(self.sources, [query_id])[0]
        if self.opened.run is None or row.get("said") is not None:
            return None
        try:
            return said_in_run(self.opened.run, [query_id], self.opened.trust).get(query_id)
        except UntrustedError as error:  # all else can be shown
            PlainConsole(stderr=True).print(f"The model is not asked what it answers: {error}", soft_wrap=True)
            return None


def _has_long_text(view: QueryView, cut: int) -> bool:
    lists = [view.proponents, *([view.opponents] if view.opponents else [])]
    texts = [view.prompt, *(example.text for of in lists for example in of.examples)]
    return any(text is not None and len(text) > cut for text in texts)


def _again(stores: Sequence[str], kind: str | None, texts: Sequence[str] | None, run: str | None, trust: bool) -> str:
    """Return the command as it was given, without what chooses a query."""
    words = ["ftrace", "show", *stores]
    for option, given in (("--kind", kind), ("--run", run)):
        words += [option, given] if given is not None else []
    words += ["--texts", *texts] if texts else []
    words += ["--trust"] if trust else []
    return shlex.join(words)


def _tell(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True)
