"""The costs of an index of a corpus: bytes, hours and machines, from measured rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ftrace.index.settings import IndexSettings


@dataclass(frozen=True)
class IndexPlan:
    """The costs of an index.

    Args:
        examples: N.
        size: D: numbers of a row.
        blocks: The number of blocks of a row.
        settings: How the index is kept.
        rows_per_second: Rows that one machine makes, as measured.
        write_rate: Bytes a second that it writes.
        read_rate: Bytes a second that it reads.
        hours: The time within which the index is to be written.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> plan = IndexPlan(10**9, 65_536, 16, IndexSettings(dtype="bfloat16"), 500.0, 1e9, 2e9, 24.0)
        >>> f"{plan.bytes / 2**40:.0f} TiB, {plan.machine_hours:.0f} h, {plan.machines} machines"
        '119 TiB, 556 h, 24 machines'
    """

    examples: int
    size: int
    blocks: int
    settings: IndexSettings
    rows_per_second: float
    write_rate: float
    read_rate: float
    hours: float = 24.0

    def __post_init__(self) -> None:
        for name in ("examples", "size", "blocks", "rows_per_second", "write_rate", "read_rate", "hours"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, found {getattr(self, name)}")

    @property
    def bytes(self) -> int:
        """The bytes on disk: rows with their ids, weights, scales and steps, and R."""
        return self.examples * self.settings.row_bytes(self.size) + self.statistics_bytes

    @property
    def statistics_bytes(self) -> int:
        """The bytes of R: a matrix for each block."""
        return int(4 * self.blocks * (self.size / self.blocks) ** 2)

    @property
    def shards(self) -> int:
        """The number of files of rows."""
        return math.ceil(self.examples / self.settings.rows_of_shard(self.size))

    @property
    def machine_hours(self) -> float:
        """The hours of one machine: for the gradients, or for writing where that takes longer."""
        seconds = max(self.examples / self.rows_per_second, self.bytes / self.write_rate)
        return seconds / 3600

    @property
    def machines(self) -> int:
        """The number of machines that write it in time."""
        return math.ceil(self.machine_hours / self.hours)

    @property
    def search_seconds(self) -> float:
        """The seconds of an exact pass over all rows by as many machines, for any queries that fit into memory."""
        return self.bytes / self.read_rate / self.machines

    def lines(self) -> list[tuple[str, str]]:
        """Describe the plan: pairs of a name and a value."""
        return [
            ("examples", f"{self.examples:,}"),
            ("a row", f"{self.size:,} numbers in {self.blocks} blocks, {self.settings.dtype}"),
            ("rows on disk", f"{readable(self.bytes)} in {self.shards:,} files"),
            ("measured here", f"{self.rows_per_second:,.0f} rows/s, writing {readable(self.write_rate)}/s, reading "
                              f"{readable(self.read_rate)}/s"),
            ("one such machine", f"{self.machine_hours:,.1f} hours"),
            (f"within {self.hours:g} hours", f"{self.machines:,} machine{'s' if self.machines > 1 else ''}"),
            ("one exact search", f"{self.search_seconds:,.1f} seconds, by as many machines"),
        ]  # fmt: skip


def readable(count: float) -> str:
    """Format a number of bytes for people.

    Example:
        >>> readable(87.3 * 2**40)
        '87.3 TiB'
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = max(0, min(len(units) - 1, int(math.log(max(count, 1), 1024))))
    return f"{count / 1024**power:,.1f} {units[power]}"
