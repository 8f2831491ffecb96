"""The parts of the explorer's app, in the order in which they are put into the page's one script."""

from __future__ import annotations

PARTS = (
    "text.js",
    "numbers.js",
    "address.js",
    "chunks.js",
    "notes.js",
    "keys.js",
    "views.js",
    "growing.js",
    "shared_parts.js",
    "how_to_read.js",
    "query_order.js",
    "queries.js",
    "loss_chart.js",
    "example_list.js",
    "query.js",
    "compare.js",
    "tokens.js",
    "example_page.js",
    "causal_map.js",
    "ledger_chart.js",
    "run_page.js",
    "notes_view.js",
    "frame.js",
    "main.js",
)
"""File names in ``app/``. Views come after what they use, and ``main.js``, which starts the app, comes last."""

STYLES = ("app.css", "views.css")
"""File names in ``app/``, likewise."""
