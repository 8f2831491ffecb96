"""The score store: what every method writes and everything else reads."""

from ftrace.scores.accumulator import ScoreAccumulator
from ftrace.scores.store import ScoreStore, check_replaceable

__all__ = ["ScoreAccumulator", "ScoreStore", "check_replaceable"]
