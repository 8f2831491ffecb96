"""What a score is worth: retrieval metrics against ground-truth proponents, and the table that compares methods."""

from ftrace.evaluation.learned import find_learned_queries
from ftrace.evaluation.learned_when import LearnedBin, learned_when, render_learned_when, write_learned_when
from ftrace.evaluation.metrics import MeanReciprocalRank, PrecisionAtK, RecallAtK
from ftrace.evaluation.table import Evaluation, evaluate, render_table, write_tables

__all__ = [
    "Evaluation",
    "LearnedBin",
    "MeanReciprocalRank",
    "PrecisionAtK",
    "RecallAtK",
    "evaluate",
    "find_learned_queries",
    "learned_when",
    "render_learned_when",
    "render_table",
    "write_learned_when",
    "write_tables",
]
