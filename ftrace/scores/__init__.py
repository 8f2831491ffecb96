"""The score store: what every method writes and everything else reads."""

from ftrace.scores.block_writer import ScoreWriter
from ftrace.scores.doubts import find_doubts
from ftrace.scores.ids import stable_id
from ftrace.scores.ledger import Ledger
from ftrace.scores.store import ScoreStore
from ftrace.scores.store_files import check_replaceable
from ftrace.scores.sums import Sum
from ftrace.scores.texts import EXAMPLE_ID, QUERY_ID, Texts

__all__ = [
    "EXAMPLE_ID",
    "QUERY_ID",
    "Ledger",
    "ScoreStore",
    "ScoreWriter",
    "Sum",
    "Texts",
    "check_replaceable",
    "find_doubts",
    "stable_id",
]
