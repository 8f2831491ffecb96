"""Attribution methods that score a finished run. Each writes a score store."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.attribution.bm25 import Bm25
    from ftrace.attribution.dense import Dense
    from ftrace.attribution.embed import Embed
    from ftrace.attribution.ensemble import Ensemble
    from ftrace.attribution.index_pass import answer_lengths, index_corpus, measured
    from ftrace.attribution.method import AttributionMethod, describe_methods, find_method, known_methods
    from ftrace.attribution.passes import Pass, score_in_passes
    from ftrace.attribution.preconditioners_of_snapshots import snapshot_preconditioners
    from ftrace.attribution.random_target import RandomTarget
    from ftrace.attribution.run_tokens import FinishedRun, MadeTokens, make_tokens, snapshot_for
    from ftrace.attribution.task import Task
    from ftrace.attribution.tracin import TracIn
    from ftrace.attribution.trackstar import TrackStar
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "AttributionMethod",
    "Bm25",
    "Dense",
    "Embed",
    "Ensemble",
    "FinishedRun",
    "MadeTokens",
    "Pass",
    "RandomTarget",
    "Task",
    "TracIn",
    "TrackStar",
    "answer_lengths",
    "describe_methods",
    "find_method",
    "index_corpus",
    "known_methods",
    "make_tokens",
    "measured",
    "score_in_passes",
    "snapshot_for",
    "snapshot_preconditioners",
]
