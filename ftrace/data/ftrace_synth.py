"""FTRACE-SYNTH as a LightningDataModule."""

from __future__ import annotations

from ftrace.data.fact_data import FactData
from ftrace.data.synth_tables import SynthTables


class FtraceSynth(SynthTables, FactData):
    """Data module of FTRACE-SYNTH: generated once, cached by the hash of its settings.

    Args:
        synth: The generator's flags.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The generated folder, with ``train.parquet`` and ``queries.parquet``.
    """
