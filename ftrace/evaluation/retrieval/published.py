"""Published figures to set ours beside: Akyürek et al. 2022, arXiv 2205.11482, as a summary of its tables has them.

They are of the full-size data, learned queries, candidate pools (BM25 on its own list), and no intervals were printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "Akyürek et al. 2022, arXiv 2205.11482"


@dataclass(frozen=True)
class PublishedRow:
    """One method's published figures.

    Args:
        method: Its name.
        metrics: Shares of 1, by our names of metrics.
        source: Where they were published.
    """

    method: str
    metrics: Mapping[str, float]
    source: str = SOURCE


def _synth(method: str, mrr: float, precision: float, recall: float) -> PublishedRow:
    return PublishedRow(method, {"MRR": mrr / 100, "P@10": precision / 100, "R@10": recall / 100})


def _trex(method: str, mrr: float, recall: float) -> PublishedRow:
    return PublishedRow(method, {"MRR": mrr / 100, "R@10": recall / 100})


PUBLISHED: dict[str, tuple[PublishedRow, ...]] = {
    "FtraceSynth": (
        _synth("BM25", 87.69, 52.02, 4.20),
        _synth("TracIn", 100.00, 99.50, 8.02),
        _synth("EMBED", 99.58, 97.12, 7.83),
        _synth("TracIn + EMBED", 100.00, 98.07, 7.91),
    ),
    "FtraceTrex": (
        _trex("BM25", 77.55, 60.89),
        _trex("TracIn, fine-tuning", 48.56, 56.02),
        _trex("TracIn, pre-training", 62.38, 57.54),
        _trex("EMBED", 64.29, 57.89),
        _trex("TracIn + EMBED", 58.52, 61.72),
    ),
}


def published_for(data: object) -> tuple[PublishedRow, ...]:
    """What has been published on a datamodule's data set; nothing, for data of one's own."""
    found = [PUBLISHED[base.__name__] for base in type(data).__mro__ if base.__name__ in PUBLISHED]
    return found[0] if found else ()
