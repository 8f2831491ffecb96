"""A user's own corpus as a LightningDataModule."""

from __future__ import annotations

from ftrace.data.corpus_tables import CorpusTables
from ftrace.data.fact_data import FactData


class FactCorpus(CorpusTables, FactData):
    """Data module of your own training rows and queries, from JSON-lines, JSON or Parquet files; see docs/data.md.

    Rows have ``inputs`` and ``targets`` (a masked sentence and its answers, or a beginning and its end), ``messages``
    or ``prompt`` and ``completion`` as TRL has them, or ``text`` alone, all of which a decoder-only model learns.
    ``facts`` of rows and ``fact`` of queries, or a query's ``proponents``, are needed for evaluation only.

    Args:
        train: Files of training rows, one or several.
        queries: Files of queries, one or several.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The folder with ``train.parquet`` and ``queries.parquet``.
    """
