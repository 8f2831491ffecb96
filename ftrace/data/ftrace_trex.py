"""FTRACE-TREX as a LightningDataModule."""

from __future__ import annotations

from ftrace.data.fact_data import FactData
from ftrace.data.trex_tables import TrexTables


class FtraceTrex(TrexTables, FactData):
    """Data module of FTRACE-TREX: sentences of Wikipedia with the facts that they state, and queries of LAMA.

    Indexed once, cached by the hash of its files. A query's ground-truth proponents are all masked variants of each
    sentence that states its fact; queries without proponents are left out, counted and reported. Source: Akyürek et
    al. 2022, arXiv 2205.11482.

    Args:
        source: A data set on the Hugging Face hub, a folder with the same files (``abstracts*`` and ``queries*``; JSON
            lines, JSON or Parquet), or "sample": some sentences about made-up places and people that ship with ftrace.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The indexed folder, with ``train.parquet`` and ``queries.parquet``.
    """
