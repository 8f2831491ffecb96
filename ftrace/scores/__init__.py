"""The score store: what every method writes and everything else reads."""

from ftrace.scores.answer_record import NEVER_ASKED, Answered, AnswerRecord
from ftrace.scores.block_writer import ScoreWriter
from ftrace.scores.doubts import find_doubts
from ftrace.scores.ids import as_ids, stable_id
from ftrace.scores.ledger import Ledger
from ftrace.scores.next_command import show_command
from ftrace.scores.store import ScoreStore
from ftrace.scores.store_files import check_replaceable
from ftrace.scores.sums import Sum
from ftrace.scores.texts import EXAMPLE_ID, QUERY_ID, Texts
from ftrace.scores.token_scores import ExampleTokenScores, QueryTokenScores, SequenceScores

__all__ = [
    "EXAMPLE_ID",
    "NEVER_ASKED",
    "QUERY_ID",
    "AnswerRecord",
    "Answered",
    "ExampleTokenScores",
    "Ledger",
    "QueryTokenScores",
    "ScoreStore",
    "ScoreWriter",
    "SequenceScores",
    "Sum",
    "Texts",
    "as_ids",
    "check_replaceable",
    "find_doubts",
    "show_command",
    "stable_id",
]
