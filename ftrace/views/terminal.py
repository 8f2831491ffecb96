"""Views of queries for a terminal, a file or a pipe, laid out with rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ftrace.console import PlainConsole
from ftrace.shown_numbers import score_text
from ftrace.shown_text import counted, plain
from ftrace.views.marked_text import excerpt, marked_text
from ftrace.views.query_view import ColumnView, ExampleView, ListView, QueryView, Said
from ftrace.views.ranking import Place

CUT = 400  # characters of a text in a terminal; a pipe gets all of them
_BOLD, _DIM, _GOOD, _BAD, _DOUBT = "bold", "dim", "green", "red", "yellow"


def render_query(view: QueryView, cut: int | None = None, width: int | None = None) -> Group:
    """Lay out a query with its strongest examples.

    Args:
        view: The query.
        cut: The most characters of a text; default: all.
        width: The width of the screen. Where many sources would leave too little of it for texts, they lose their
            shares first, and then their scores. Default: wide enough.
    """
    parts: list[RenderableType] = [_heading(view, cut), _facts(view)]
    parts += [Text(f"Doubtful: {plain(doubt)}", style=_DOUBT) for doubt in _doubts(view.columns)]
    headings = (f"proponents: they lowered the loss{_by(view)}", f"opponents: they raised it{_by(view)}")
    return Group(*parts, render_examples(view, *headings, cut, width))


def render_examples(
    view: QueryView, proponents: str, opponents: str, cut: int | None = None, width: int | None = None
) -> Group:
    """Lay out the strongest examples of a query.

    Args:
        view: The query.
        proponents: The heading of the proponents.
        opponents: The heading of the opponents.
        cut: As in :func:`render_query`.
        width: Likewise.
    """
    parts: list[RenderableType] = [Text(), Text(plain(proponents), style=_BOLD)]
    parts += [_list(view, view.proponents, cut, width), *_notes(view, view.proponents, proponents=True)]
    if view.opponents is not None and view.opponents.examples:
        parts += [Text(), Text(plain(opponents), style=_BOLD)]
        parts += [_list(view, view.opponents, cut, width), *_notes(view, view.opponents, proponents=False)]
    elif view.opponents is not None and any(column.opponents == 0 for column in view.columns):
        parts += [Text(), Text("opponents: none, no score is negative")]
    return Group(*parts)


def print_view(view: RenderableType, console: Console) -> None:
    """Print what was laid out: to a terminal in its width; to a pipe or a file each row on one line.

    Args:
        view: What :func:`render_query` or :func:`ftrace.views.render_queries` returns.
        console: Where to print it.
    """
    if console.is_terminal:
        console.print(view)
        return
    wide = PlainConsole(width=_UNWRAPPED, color_system=None, force_terminal=False, legacy_windows=False)
    with wide.capture() as capture:
        wide.print(view)
    for line in capture.get().splitlines():
        console.print(Text(line.rstrip()), soft_wrap=True)


_UNWRAPPED = 1_000_000_000


def id_text(known_id: int, name: str | None) -> str:
    """Return how an example or query is called: by its name, or by its number."""
    return plain(name) if name is not None else f"#{known_id}"


def _heading(view: QueryView, cut: int | None) -> Text:
    called = f"query {plain(view.name) if view.name is not None else view.query_id}"
    heading = Text(called, style=_BOLD)
    if view.prompt is not None:
        heading.append(": ")
        heading.append_text(marked_text(excerpt(view.prompt, (), cut)[0]))
    return heading


def _facts(view: QueryView) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=_DIM, no_wrap=True)
    table.add_column(overflow="fold")
    if view.answer is not None:
        answer = marked_text(view.answer, style=_BOLD)
        if view.accepted:
            answer.append(f"  also accepted: {plain('; '.join(view.accepted))}", style="not bold")
        table.add_row("  answer", answer)
    if view.said is not None:
        table.add_row("  the model said", said_text(view.said))
    if view.history is not None:
        known = view.history.answered.state != "unknown"
        if view.history.losses is not None:
            said_of_answers = f"; {view.history.answered}" if known else ""
            table.add_row("  loss", f"{loss_text(view.history.losses)} nats{said_of_answers}")
        elif known:
            table.add_row("  training", str(view.history.answered))
    return table


def said_text(said: Said) -> Text:
    """Say what the model answered, how sure it was, and whether that is right."""
    text = Text("(no end to its answer)") if said.text is None else marked_text(said.text, style=_BOLD)
    if said.probability is not None:
        text.append(f"  {percent(said.probability)}", style="not bold")
    if said.right is not None:
        text.append("  right" if said.right else "  wrong", style=f"not bold {_GOOD if said.right else _BAD}")
    if said.snapshot:
        text.append(f"  at {plain(said.snapshot)}", style=f"not bold {_DIM}")
    return text


def loss_text(losses: tuple[float, float]) -> str:
    """Say how a loss changed, in nats.

    Args:
        losses: The first and the last.
    """
    return f"{_nats(losses[0])} → {_nats(losses[1])}"


def _nats(loss: float) -> str:
    return f"{loss:.3g}" if not 0 < loss < 1 else f"{loss:.2f}" if loss >= 0.005 else "<0.01"


def percent(share: float) -> str:
    """Format a share in percent: with a decimal below 10, and never a rounded 0 or 100.

    Example:
        >>> [percent(share) for share in (1, 0.9996, 0.42, 0.042, 0.0002, 0)]
        ['100%', '>99%', '42%', '4.2%', '<0.1%', '0%']
        >>> [percent(share) for share in (-0.9996, -0.0002)]
        ['<-99%', '>-0.1%']
    """
    if share in (0, 1):
        return f"{share:.0%}"
    if abs(share) < 0.0005:
        return ">-0.1%" if share < 0 else "<0.1%"
    if 0.995 <= abs(share) < 1:
        return "<-99%" if share < 0 else ">99%"
    return f"{share:.1%}" if abs(share) < 0.0995 else f"{share:.0%}"


def _doubts(columns: Sequence[ColumnView]) -> Iterator[str]:
    for column in columns:
        for doubt in column.doubts:
            yield doubt if len(columns) == 1 else f"{column.title}: {doubt}"


def _by(view: QueryView) -> str:
    """Name the scores in a heading, where no column does."""
    return f", by {plain(view.columns[0].title)}" if len(view.columns) == 1 else ""


def _list(view: QueryView, listed: ListView, cut: int | None, width: int | None) -> Table:
    """Lay out a list of examples: rank, score and share of each source, then the text."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    by_source = [
        _scores([example.places[column] for example in listed.examples]) for column in range(len(view.columns))
    ]
    columns: list[list[str]]
    if len(view.columns) == 1 or view.by_first:
        columns = [[row[place] for row in by_source[0]] for place in range(3)]
        columns += [[score for _, score, _ in rows] for rows in by_source[1:]]
        for heading in ("rank", (view.by_first and view.columns[0].kind) or "score", "share"):
            table.add_column(Text(plain(heading)), justify="right", no_wrap=True)
        for column in view.columns[1:]:
            table.add_column(Text(plain(column.title)), justify="right", overflow="fold")
    else:
        columns = _fitting(by_source, width)
        for column in view.columns:
            table.add_column(Text(plain(column.title)), justify="right", overflow="fold")
    states_fact = any(example.states_fact is not None for example in listed.examples)
    if states_fact:
        table.add_column("states fact", max_width=6)
    table.add_column("training example", overflow="fold", ratio=1)
    for place, example in enumerate(listed.examples):
        cells: list[RenderableType] = [Text(column[place]) for column in columns]
        if states_fact:
            cells.append(_FACT[example.states_fact])
        table.add_row(*cells, _example_text(example, cut))
    return table


_FOR_SCORES = 0.5  # most of the width that several sources may take
_UNRANKED = "-"
_FACT = {True: Text("yes", style=_GOOD), False: Text("no"), None: Text("")}


def _scores(places: Sequence[Place | None]) -> list[tuple[str, str, str]]:
    """Format ranks, scores and shares, all scores with as many decimals as the largest needs, if that shows them."""
    largest = max((abs(place.score) for place in places if place is not None), default=0.0)
    return [
        (_UNRANKED, "", "")
        if place is None
        else (rank_text(place), score_text(place.score, largest), "" if place.share is None else percent(place.share))
        for place in places
    ]


def _fitting(by_source: Sequence[Sequence[tuple[str, ...]]], width: int | None) -> list[list[str]]:
    """Join rank, score and share of each source, without shares, and then without scores, where there is no room."""
    for count in (3, 2, 1):
        columns = [_aligned([row[:count] for row in rows]) for rows in by_source]
        taken = sum(max(map(len, column), default=0) + 2 for column in columns)
        if width is None or taken <= _FOR_SCORES * width:
            break
    return columns


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def rank_text(place: Place) -> str:
    """Format a rank; "=3" is shared with other examples of the same score."""
    return f"={place.rank}" if place.ties else str(place.rank)


def _example_text(example: ExampleView, cut: int | None) -> Text:
    called = id_text(example.example_id, example.name)
    if example.text is None:
        text = Text(called)
    else:
        text = marked_text(*excerpt(example.text, example.shared, cut), marked=f"{_BOLD} cyan")
        text.append(f"  {called}", style=_DIM)
    if example.duplicate_ids:
        text.append(f"  +{len(example.duplicate_ids)} alike", style=_DIM)
    return text


def _notes(view: QueryView, listed: ListView, *, proponents: bool) -> Iterator[Text]:
    """Say what the list leaves out or takes in, where a reader would be misled."""
    for place, column in enumerate(view.columns[:1] if view.by_first else view.columns):
        of = "" if len(view.columns) == 1 else f"{plain(column.title)}: "
        for note in _notes_on(column, view.k, listed.counts[place], listed.same_as_last[place], proponents):
            yield Text(f"  {of}{note}", style=_DIM)
    shares = [
        f"{plain(column.title)} has {share} of the first {listed.counts[0]} of {plain(view.columns[0].title)}"
        for column, share in zip(view.columns[1:], listed.overlaps, strict=True)
        if share is not None and proponents
    ]
    yield from (Text(f"  {share}", style=_DIM) for share in shares)


def _notes_on(column: ColumnView, k: int, count: int, same_as_last: int, proponents: bool) -> Iterator[str]:
    if same_as_last:
        yield f"{same_as_last:,} more {'has' if same_as_last == 1 else 'have'} the score of the last one"
    if proponents and not column.knows_query:
        yield "no scores for this query"
    if proponents and column.candidates is not None and column.candidates < k:
        are = "is" if column.candidates == 1 else "are"
        yield f"{counted(column.candidates, 'example')} {are} ranked, no more"
    if proponents and column.proponents is not None and column.proponents < count:
        only = f"only {column.proponents:,}" if column.proponents else "none"
        yield f"{only} of these scores {'is' if column.proponents == 1 else 'are'} positive; no other is a proponent's"
