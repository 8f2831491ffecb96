"""Score stores side by side: candidate pools, metrics with intervals, and tables that compare methods."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.evaluation.retrieval.breakdowns import breakdown
    from ftrace.evaluation.retrieval.candidate_pools import CandidatePools, PoolSettings, make_candidate_pools
    from ftrace.evaluation.retrieval.choices import Family, choose_best, families
    from ftrace.evaluation.retrieval.evaluation import Evaluation, evaluate, over_runs
    from ftrace.evaluation.retrieval.files import write_tables
    from ftrace.evaluation.retrieval.learned_bins import (
        LearnedBin,
        LearnedMethod,
        learned_when,
        render_learned_when,
        write_learned_when,
    )
    from ftrace.evaluation.retrieval.metrics import Judge, WholeTrainingSet
    from ftrace.evaluation.retrieval.published import published_for
    from ftrace.evaluation.retrieval.ranking import Ranking
    from ftrace.evaluation.retrieval.render import render_breakdown, render_table
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "CandidatePools",
    "Evaluation",
    "Family",
    "Judge",
    "LearnedBin",
    "LearnedMethod",
    "PoolSettings",
    "Ranking",
    "WholeTrainingSet",
    "breakdown",
    "choose_best",
    "evaluate",
    "families",
    "learned_when",
    "make_candidate_pools",
    "over_runs",
    "published_for",
    "render_breakdown",
    "render_learned_when",
    "render_table",
    "write_learned_when",
    "write_tables",
]
