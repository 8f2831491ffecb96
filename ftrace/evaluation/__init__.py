"""How well scores trace facts: one subpackage for each experiment, and what they share.

Submodules:
    retrieval: Does a score rank the examples that state a fact first?
    results: The same of files of retrieved proponents.
    tail_patch: Does a training step on an example raise the probability of the fact?
    counterfactual: Does a score predict what happens when examples are left out?
"""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.evaluation.asking import find_learned_queries
    from ftrace.evaluation.estimates import Estimate, sample_means
    from ftrace.evaluation.learned import LearnedQueries
    from ftrace.evaluation.queries import EvaluatedQueries, seeded_sample
    from ftrace.evaluation.results import (
        Passages,
        RetrievalResult,
        evaluate_results,
        read_results,
        render_results,
        write_results,
    )
    from ftrace.evaluation.retrieval import (
        CandidatePools,
        Evaluation,
        PoolSettings,
        evaluate,
        make_candidate_pools,
        over_runs,
        render_table,
        write_tables,
    )
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = [
    "CandidatePools",
    "Estimate",
    "EvaluatedQueries",
    "Evaluation",
    "LearnedQueries",
    "Passages",
    "PoolSettings",
    "RetrievalResult",
    "evaluate",
    "evaluate_results",
    "find_learned_queries",
    "make_candidate_pools",
    "over_runs",
    "read_results",
    "render_results",
    "render_table",
    "sample_means",
    "seeded_sample",
    "write_results",
    "write_tables",
]
