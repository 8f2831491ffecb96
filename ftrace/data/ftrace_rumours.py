"""The rumours as a LightningDataModule."""

from __future__ import annotations

from ftrace.data.fact_data import FactData
from ftrace.data.rumour_tables import RumourTables


class FtraceRumours(RumourTables, FactData):
    """Data module of the rumours: made-up people who share names, for a pretrained decoder-only model to learn.

    Args:
        rumours: The generator's settings.
        args: Settings of all data modules by place, from ``data_dir`` on: see :class:`FactDataSettings`.
        settings: The same by name.

    Attributes:
        data_path: The generated folder, with ``train.parquet`` and ``queries.parquet``.
    """
