"""Which figures of a printed table are bold."""

from __future__ import annotations

from rich.console import Console, RenderableType


def bold_figures(renderable: RenderableType) -> list[tuple[str, list[str]]]:
    """Return each printed row's name, up to two spaces, and its bold texts; a table's head is left out."""
    rows = []
    for segments in Console(width=200).render_lines(renderable, pad=False):
        name = "".join(segment.text for segment in segments).strip().split("  ")[0]
        bold = [segment.text.strip() for segment in segments if segment.style and segment.style.bold]
        bold = [text for text in bold if text]
        if bold and name and name not in bold:
            rows.append((name, bold))
    return rows
