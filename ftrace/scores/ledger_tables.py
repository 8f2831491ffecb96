"""Tables of a ledger, for pandas, xarray and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ftrace.scores.answer_record import Answered
from ftrace.scores.html import facts_and_tables, table
from ftrace.scores.names import Names
from ftrace.scores.optional import import_xarray

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_QUERIES = 5


def ledger_table(
    steps: np.ndarray, next_steps: np.ndarray, names: Names, columns: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """Make a table with a row for each interval and query.

    Args:
        steps: ``[R]``.
        next_steps: ``[R]``.
        names: Of the queries, ``[Q]``.
        columns: By name, ``[R, Q]``.
    """
    import pandas as pd

    rows, queries = len(steps), len(names.ids)
    keys: dict[str, Any] = {
        "step": np.repeat(steps, queries),
        "next_step": np.repeat(next_steps, queries),
        "query_id": np.tile(names.ids, rows),
    }
    if names.are_known:
        keys["query_name"] = names.of(names.ids) * rows
    return pd.DataFrame({**keys, **{name: values.ravel() for name, values in columns.items()}})


def ledger_arrays(
    steps: np.ndarray, next_steps: np.ndarray, names: Names, columns: Mapping[str, np.ndarray]
) -> xr.Dataset:
    """Make a data set of a variable ``step x query`` for each column; arguments as in :func:`ledger_table`.

    Raises:
        ImportError: If xarray is not installed.
    """
    xarray = import_xarray()
    labels = names.labels()
    coordinates: dict[str, Any] = {"step": steps, "query": np.array(labels), "next_step": ("step", next_steps)}
    if labels is not names.ids:
        coordinates["query_id"] = ("query", np.array(names.ids))
    return xarray.Dataset({name: (("step", "query"), values) for name, values in columns.items()}, coordinates)


def ledger_html(
    title: str,
    facts: Iterable[tuple[str, str]],
    explained: Mapping[str, float],
    shares: Mapping[str, float],
    names: Names,
    columns: Mapping[str, np.ndarray],
    answered: Sequence[Answered],
) -> str:
    """Render a ledger as HTML: what explains the fall of the losses, and the first queries.

    Args:
        title: The heading.
        facts: Names and values.
        explained: How much of the fall of the queries' losses each account explains, in nats, on average.
        shares: The same as shares of the fall, as far as there are any.
        names: Of the queries, ``[Q]``.
        columns: By name, ``[R, Q]``.
        answered: When each query was right, ``[Q]``.
    """
    accounts = [
        [name, f"{nats:.4g}", f"{shares[name]:.1%}" if name in shares else ""] for name, nats in explained.items()
    ]
    shown = names.ids[:_QUERIES]
    rows = [
        [name, _first(columns["loss"][:, place]), _first(columns["next_loss"][::-1, place]), str(of_query)]
        for place, (name, of_query) in enumerate(zip(names.of(shown), answered[:_QUERIES], strict=True))
    ]
    count = len(names.ids)
    caption = f"The first {len(shown)} of {count:,} queries" if count > len(shown) else "The queries"
    return facts_and_tables(
        title,
        facts,
        table("What explains the fall of the losses", ["account", "nats a query", "share"], accounts),
        table(caption, ["query", "first loss", "last loss", "answers"], rows),
    )


def _first(values: np.ndarray) -> str:
    """Format the first value that is known."""
    known = values[np.isfinite(values)]
    return f"{known[0]:.4g}" if len(known) else ""
