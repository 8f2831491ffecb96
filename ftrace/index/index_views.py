"""What a Python prompt, a notebook and pandas show of a gradient index; no gradients are read for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ftrace.index.segment import Segment
from ftrace.scores.html import facts_and_tables, table
from ftrace.scores.names import Names

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 10_000_000
_SEGMENTS = 20


def rows_table(segments: Sequence[Segment], names: Names) -> pd.DataFrame:
    """Make a table with a line for each row of an index; :meth:`GradientIndex.to_pandas` says which columns it has.

    Args:
        segments: The index's.
        names: Of the examples.

    Raises:
        ValueError: If there are more than ten million rows, or a file is damaged.
    """
    import pandas as pd

    count = sum(map(len, segments))
    if count > _MOST_ROWS:
        raise ValueError(
            f"expected an index of at most {_MOST_ROWS:,} rows, found {count:,}. Take the arrays segment.ids and "
            "segment.weights of each of index.segments"
        )
    ids = np.concatenate([segment.ids for segment in segments])
    columns: dict[str, Any] = {
        "segment": np.repeat([segment.step for segment in segments], [len(segment) for segment in segments]),
        "step": np.concatenate([shard.column("steps").numpy() for segment in segments for shard in segment.shards]),
        "example_id": ids,
    }
    if names.are_known:
        columns["example_name"] = names.of(ids)
    columns["weight"] = np.concatenate([segment.weights for segment in segments])
    return pd.DataFrame(columns)


def index_html(title: str, facts: Iterable[tuple[str, str]], segments: Sequence[Segment]) -> str:
    """Render an index as HTML: the facts and its first segments."""
    rows = [
        [
            segment.folder.name,
            f"{segment.step:,}",
            f"{len(segment):,}",
            f"{segment.manifest['examples']:,}",
            f"{sum(shard['bytes'] for shard in segment.manifest['shards']) / 1e6:,.1f}",
        ]
        for segment in segments[:_SEGMENTS]
    ]
    caption = "The segments" if len(rows) == len(segments) else f"The first {len(rows)} of {len(segments):,} segments"
    return facts_and_tables(title, facts, table(caption, ["segment", "step", "rows", "examples", "MB"], rows))
