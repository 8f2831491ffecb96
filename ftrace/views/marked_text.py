"""Texts with marked spans, as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from ftrace.shown_text import plain

Span = tuple[int, int]


def marked_text(text: str, spans: Sequence[Span] = (), style: str = "", marked: str = "bold") -> Text:
    """Make a printable text in which some spans are marked.

    Args:
        text: Any text; it is never read as markup.
        spans: Begin and end of each span, in ascending order and apart from each other.
        style: The style of the text.
        marked: The style of the spans.
    """
    result, end = Text(style=style), 0
    for begin, next_end in spans:
        result.append(plain(text[end:begin]))
        result.append(plain(text[begin:next_end]), marked)
        end = next_end
    result.append(plain(text[end:]))
    return result


def excerpt(text: str, spans: Sequence[Span], limit: int | None) -> tuple[str, list[Span]]:
    """Cut a text to the part in which most is marked.

    Args:
        text: The text.
        spans: Its marked spans, as in :func:`marked_text`.
        limit: The most characters; None: the whole text.

    Returns:
        The part, with ``…`` where something was cut, and the spans that lie in it.

    Example:
        >>> excerpt("a long text about Oslo in Norway", [(18, 22)], 12)
        ('… Oslo in Nor…', [(2, 6)])
    """
    if limit is None or len(text) <= limit:
        return text, list(spans)
    begins = [0, *(max(0, min(begin - limit // 4, len(text) - limit)) for begin, _ in spans)]
    begin = max(begins, key=lambda place: sum(place <= start and end <= place + limit for start, end in spans))
    if begin:  # at the beginning of a word, if there is one near
        space = text.find(" ", begin, begin + limit // 4)
        begin = space if space >= 0 else begin
    part = text[begin : begin + limit]
    ahead, behind = "…" if begin else "", "…" if begin + limit < len(text) else ""
    moved = len(ahead) - begin
    inside = [(start + moved, end + moved) for start, end in spans if begin <= start and end <= begin + len(part)]
    return f"{ahead}{part}{behind}", inside
