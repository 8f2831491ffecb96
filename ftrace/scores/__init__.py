"""The score store: what every method writes and everything else reads."""

from ftrace.scores.accumulator import Candidates, ScoreAccumulator, Sum
from ftrace.scores.block_writer import ScoreWriter
from ftrace.scores.doubts import find_doubts
from ftrace.scores.ids import stable_id
from ftrace.scores.ledger import Ledger
from ftrace.scores.store import ScoreStore, check_replaceable

__all__ = [
    "Candidates",
    "Ledger",
    "ScoreAccumulator",
    "ScoreStore",
    "ScoreWriter",
    "Sum",
    "check_replaceable",
    "find_doubts",
    "stable_id",
]
