"""The memory that a run needs for its scores, by what it is for, beside what is free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftrace.index import readable

NOTABLE_BYTES = 2**28
NOTABLE_FRACTION = 0.1  # of what is free


@dataclass(frozen=True)
class Place:
    """Memory or disk, what a run needs there, and what is free.

    Args:
        name: As in "2 GiB of memory".
        needs: Bytes, by what they are for.
        free: Bytes that are free for this process; infinity if that is not known.
    """

    name: str
    needs: Mapping[str, int]
    free: float

    @property
    def total(self) -> int:
        """All bytes that are needed here."""
        return sum(self.needs.values())

    @property
    def is_notable(self) -> bool:
        """Whether so much is needed that a user should know."""
        return self.total >= NOTABLE_BYTES or self.total > NOTABLE_FRACTION * self.free

    @property
    def fits(self) -> bool:
        """Whether there is as much as is needed."""
        return self.total <= self.free

    def __str__(self) -> str:
        shown = [f"{name} {readable(size)}" for name, size in _largest(self.needs) if size * 20 >= self.total]
        free = f", {readable(self.free)} free" if self.free < float("inf") else ""
        return f"{readable(self.total)} of {self.name} ({', '.join(shown)}{free})"


@dataclass(frozen=True)
class MemoryNeeds:
    """What a run needs in each place.

    Args:
        places: Memory, the device's memory and the disk, as far as they are needed.
        examples: The number of examples; None if it isn't known. Needs are then those of 1,000 examples.
    """

    places: Sequence[Place]
    examples: int | None

    def __str__(self) -> str:
        of = "for each 1,000 examples" if self.examples is None else f"for {self.examples:,} examples"
        return f"needs about {' and '.join(map(str, self.places))}, {of}"

    @property
    def is_notable(self) -> bool:
        """Whether a user should know."""
        return any(place.is_notable for place in self.places)

    @property
    def total(self) -> int:
        """All bytes, wherever they are needed."""
        return sum(place.total for place in self.places)

    def largest(self, name: str) -> tuple[str, str]:
        """Return the name of a place, or of the first if there is none of that name, and what takes the most there."""
        place = next((place for place in self.places if place.name == name), self.places[0])
        return place.name, _largest(place.needs)[0][0]

    def shortage(self) -> tuple[Place, str] | None:
        """Return the first place that has too little, and what it is that takes the most; None if there is none."""
        for place in self.places:
            if not place.fits:
                return place, _largest(place.needs)[0][0]
        return None

    def facts(self) -> dict[str, Any]:
        """Describe the needs for a manifest, in bytes."""
        by_place = {
            place.name: {
                **place.needs,
                "total": place.total,
                "free": None if place.free == float("inf") else int(place.free),
            }
            for place in self.places
        }
        return {"examples": self.examples, **by_place}


def _largest(needs: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(needs.items(), key=lambda entry: -entry[1])
