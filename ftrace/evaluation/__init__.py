"""What a score is worth: pools, learned queries, metrics with intervals, and tables that compare methods."""

from ftrace.evaluation.counterfactual.leave_out import LeftOut, effects, plan_facts, plan_top
from ftrace.evaluation.counterfactual.subsets import (
    Subsets,
    datamodelling_scores,
    draw_kept,
    order_seed,
    rank_correlations,
    reliability,
)
from ftrace.evaluation.counterfactual.tables import Counterfactual, render_counterfactual, write_counterfactual
from ftrace.evaluation.estimates import Estimate, sample_means
from ftrace.evaluation.files import replace_text, write_tables
from ftrace.evaluation.learned import LearnedQueries, find_learned_queries
from ftrace.evaluation.metrics import MeanReciprocalRank, PrecisionAtK, RecallAtK
from ftrace.evaluation.queries import EvaluatedQueries, seeded_sample
from ftrace.evaluation.results.files import Passages, RetrievalResult, read_results, write_results
from ftrace.evaluation.results.metrics import ResultsEvaluation, evaluate_results, result_metrics
from ftrace.evaluation.results.tables import render_result_groups, render_results, write_result_tables
from ftrace.evaluation.retrieval.breakdown import breakdown
from ftrace.evaluation.retrieval.candidate_pools import CandidatePools, PoolSettings, make_candidate_pools
from ftrace.evaluation.retrieval.choices import Family, choose_best, families
from ftrace.evaluation.retrieval.evaluation import Evaluation, evaluate, over_runs, row_name
from ftrace.evaluation.retrieval.learned_when import (
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
from ftrace.evaluation.tail_patch.example_kinds import KINDS, ExampleKinds
from ftrace.evaluation.tail_patch.rises import (
    TailPatchRow,
    TailPatchTable,
    notes_on_rises,
    random_examples,
    some_proponents,
    summarize_rises,
)
from ftrace.evaluation.tail_patch.step_rules import Adam, Sgd, StepRule
from ftrace.evaluation.tail_patch.steps import PatchedPairs, tail_patch
from ftrace.evaluation.tail_patch.tables import render_tail_patch, write_tail_patch

__all__ = [
    "KINDS",
    "Adam",
    "CandidatePools",
    "Counterfactual",
    "Estimate",
    "EvaluatedQueries",
    "Evaluation",
    "ExampleKinds",
    "Family",
    "Judge",
    "LearnedBin",
    "LearnedMethod",
    "LearnedQueries",
    "LeftOut",
    "MeanReciprocalRank",
    "Passages",
    "PatchedPairs",
    "PoolSettings",
    "PrecisionAtK",
    "Ranking",
    "RecallAtK",
    "ResultsEvaluation",
    "RetrievalResult",
    "Sgd",
    "StepRule",
    "Subsets",
    "TailPatchRow",
    "TailPatchTable",
    "WholeTrainingSet",
    "breakdown",
    "choose_best",
    "datamodelling_scores",
    "draw_kept",
    "effects",
    "evaluate",
    "evaluate_results",
    "families",
    "find_learned_queries",
    "learned_when",
    "make_candidate_pools",
    "notes_on_rises",
    "order_seed",
    "over_runs",
    "plan_facts",
    "plan_top",
    "published_for",
    "random_examples",
    "rank_correlations",
    "read_results",
    "reliability",
    "render_breakdown",
    "render_counterfactual",
    "render_learned_when",
    "render_result_groups",
    "render_results",
    "render_table",
    "render_tail_patch",
    "replace_text",
    "result_metrics",
    "row_name",
    "sample_means",
    "seeded_sample",
    "some_proponents",
    "summarize_rises",
    "tail_patch",
    "write_counterfactual",
    "write_learned_when",
    "write_result_tables",
    "write_results",
    "write_tables",
    "write_tail_patch",
]
