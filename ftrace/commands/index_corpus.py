"""The run and the rows that a gradient index is of, and queries in batches as its model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ftrace.commands.index import corpus_of
from ftrace.data import FactData
from ftrace.index import GradientIndex
from ftrace.run_folder import newest_run
from ftrace.runs import Run

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Corpus:
    """The run and the rows that an index is of.

    Args:
        run: The run whose model it is.
        data: The rows that its ids are of.
    """

    run: Run
    data: FactData

    @staticmethod
    def of(index: GradientIndex, run: str | Run | None) -> Corpus:
        """Open the corpus of an index.

        Args:
            index: The index.
            run: Its run, or the run's folder, or the one that its versions are in; default: as the index says.

        Raises:
            ValueError: If the index doesn't say which run it is of, or its rows are other rows by now.
        """
        noted = index.manifest.get("run")
        if isinstance(run, Run):
            opened = run
        else:
            folder = newest_run(run) if run else (index.folder / noted if noted else index.folder.absolute().parent)
            opened = Run(folder.resolve())
        files = index.manifest.get("corpus")
        data = opened.data if files is None else corpus_of(opened, files)
        known = index.manifest.get("data")
        if known is not None and known != data.fingerprint:
            raise ValueError(
                f"{str(index.folder)!r} is of other data than {str(data.data_path)!r}: expected the fingerprint "
                f"{known}, found {data.fingerprint}"
            )
        return Corpus(opened, data)


def batches_of(data: FactData, rows: Sequence[Row]) -> list[dict[str, torch.Tensor]]:
    """Collate rows of queries as a run's own queries are, in batches of the same size."""
    loader = data.query_dataloader()
    size = loader.batch_size or 1
    return [loader.collate_fn(list(rows[start : start + size])) for start in range(0, len(rows), size)]
