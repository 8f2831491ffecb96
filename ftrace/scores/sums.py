"""The names of the matrices in a score store: kinds of scores, and parts of kinds."""

from __future__ import annotations

from typing import NamedTuple


class Sum(NamedTuple):
    """The key of one matrix of sums: a kind of score, or one part of a kind (one layer's, say).

    Args:
        kind: The kind of score.
        axis: What the kind is broken down by, such as layers; "" for the kind itself.
        part: The part's name; "" for the kind itself.
    """

    kind: str
    axis: str = ""
    part: str = ""
