"""Published figures to compare with: Akyürek et al. 2022, arXiv 2205.11482, from a summary of its tables.

They are for the full-size data, learned queries and candidate pools (BM25 on a list of its own); intervals were not
published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Akyürek et al. 2022, arXiv 2205.11482"


@dataclass(frozen=True)
class PublishedRow:
    """One method's published figures.

    Args:
        method: Name of the method.
        metrics: Shares of 1, by our names of the metrics.
        source: The publication.
    """

    method: str
    metrics: Mapping[str, float]
    source: str = SOURCE


def _synth(method: str, mrr: float, precision: float, recall: float) -> PublishedRow:
    return PublishedRow(method, {"MRR": mrr / 100, "P@10": precision / 100, "R@10": recall / 100})


def _trex(method: str, mrr: float, recall: float) -> PublishedRow:
    return PublishedRow(method, {"MRR": mrr / 100, "R@10": recall / 100})


PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    "SynthTables": (
        _synth("BM25", 87.69, 52.02, 4.20),
        _synth("TracIn", 100.00, 99.50, 8.02),
        _synth("EMBED", 99.58, 97.12, 7.83),
        _synth("TracIn + EMBED", 100.00, 98.07, 7.91),
    ),
    "TrexTables": (
        _trex("BM25", 77.55, 60.89),
        _trex("TracIn, fine-tuning", 48.56, 56.02),
        _trex("TracIn, pre-training", 62.38, 57.54),
        _trex("EMBED", 64.29, 57.89),
        _trex("TracIn + EMBED", 58.52, 61.72),
    ),
}


def published_for(data: object) -> tuple[PublishedRow, ...]:
    """Return the published rows for a data set; none for a user's own data."""
    names = (base.__name__ for base in type(data).__mro__)
    return next((PUBLISHED[name] for name in names if name in PUBLISHED), ())
