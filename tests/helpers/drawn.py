"""Figures as they are before they are written, for tests of what is in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from ftrace.report.style import look


def drawn(monkeypatch: pytest.MonkeyPatch, module: Any, plot: Callable[..., Any], *args: Any) -> Figure:
    """Draw with a function of a module, and return the figure that it would have written."""
    figures: list[Figure] = []

    def keep(figure: Figure, *_: Any) -> tuple[None, None]:
        figures.append(figure)
        return None, None

    for name in ("save_picture", "save_png_and_pdf"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, keep)
    with look():
        plot(*args)
        figures[-1].draw_without_rendering()
    return figures[-1]


def texts(figure: Figure) -> list[str]:
    """All texts of a figure, without empty ones."""
    found = [text.get_text() for text in figure.findobj(Text)]  # type: ignore[attr-defined]
    return [text for text in found if text]
