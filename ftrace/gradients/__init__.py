"""The engine: per-example gradients and their products. Pure torch; imports nothing else of ftrace."""

from ftrace.gradients.arriving import Reduce, reduced_gradients
from ftrace.gradients.autocorrelation import STACKED, RunningAutocorrelation, stacked, whitener, whiteners
from ftrace.gradients.balance import balancing, divided
from ftrace.gradients.capture import GradientCapture, is_compiled
from ftrace.gradients.costs import Rates, measured_rates
from ftrace.gradients.coverage import Coverage, CoverageLine, find_coverage
from ftrace.gradients.documents import Documents
from ftrace.gradients.freed_memory import give_back_freed_memory
from ftrace.gradients.fused_heads import FusedHead, record_head
from ftrace.gradients.graph import kind_of_graph
from ftrace.gradients.layout_book import Key, LayoutBook, Rows, Shared, UnreadableError
from ftrace.gradients.layouts import Examples, PackedLayout, candidates
from ftrace.gradients.learning import learning_weights
from ftrace.gradients.names import full_name, layer_of, leave_out, match_globs, nearest, parameters_option
from ftrace.gradients.optimizer_steps import (
    BeforeStep,
    ParameterStep,
    after_step,
    before_step,
    buffer_of,
    learning_rate,
    scales_elements,
    unsupported_step,
)
from ftrace.gradients.parts import Dense, Lookup, Outer, flat_rows
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.preconditioners import (
    Elementwise,
    Preconditioner,
    RankOne,
    of_touched,
    precondition,
    preconditioner_from_state,
    preconditioners_from_optimizer,
    rank_one,
    rank_one_from_state,
    times,
    touched_elements,
)
from ftrace.gradients.products import cosines, inner_products, inner_products_and_square_norms
from ftrace.gradients.projection import (
    ENTRIES,
    OLD_ENTRIES,
    Entries,
    Projection,
    Projections,
    ProjectionSide,
    generator_for,
    pool,
    project,
)
from ftrace.gradients.queries import QueryGradients
from ftrace.gradients.recording import Recording
from ftrace.gradients.rehearsal import Rehearsal
from ftrace.gradients.rounding import coarsest_eps, of_noise, of_passes
from ftrace.gradients.row_products import stacked_products_of_rows
from ftrace.gradients.steps import ExchangeError, OnLoss
from ftrace.gradients.tokens import TokenProducts, inner_products_by_token

__all__ = [
    "ENTRIES",
    "OLD_ENTRIES",
    "STACKED",
    "BeforeStep",
    "Coverage",
    "CoverageLine",
    "Dense",
    "Documents",
    "Elementwise",
    "Entries",
    "Examples",
    "ExchangeError",
    "FusedHead",
    "GradientCapture",
    "Key",
    "LayoutBook",
    "Lookup",
    "OnLoss",
    "Outer",
    "PackedLayout",
    "ParameterStep",
    "PerExampleGradients",
    "Preconditioner",
    "Projection",
    "ProjectionSide",
    "Projections",
    "QueryGradients",
    "RankOne",
    "Rates",
    "Recording",
    "Reduce",
    "Rehearsal",
    "Rows",
    "RunningAutocorrelation",
    "Shared",
    "TokenProducts",
    "UnreadableError",
    "after_step",
    "balancing",
    "before_step",
    "buffer_of",
    "candidates",
    "coarsest_eps",
    "cosines",
    "divided",
    "find_coverage",
    "flat_rows",
    "full_name",
    "generator_for",
    "give_back_freed_memory",
    "inner_products",
    "inner_products_and_square_norms",
    "inner_products_by_token",
    "is_compiled",
    "kind_of_graph",
    "layer_of",
    "learning_rate",
    "learning_weights",
    "leave_out",
    "match_globs",
    "measured_rates",
    "nearest",
    "of_noise",
    "of_passes",
    "of_touched",
    "parameters_option",
    "pool",
    "precondition",
    "preconditioner_from_state",
    "preconditioners_from_optimizer",
    "project",
    "rank_one",
    "rank_one_from_state",
    "record_head",
    "reduced_gradients",
    "scales_elements",
    "stacked",
    "stacked_products_of_rows",
    "times",
    "touched_elements",
    "unsupported_step",
    "whitener",
    "whiteners",
]
