"""The engine: per-example gradients and their products. Pure torch; imports nothing else of ftrace."""

from ftrace.gradients.capture import GradientCapture
from ftrace.gradients.costs import Rates, measured_rates
from ftrace.gradients.coverage import Coverage, CoverageLine, find_coverage
from ftrace.gradients.parts import Dense, Lookup, Outer
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.products import cosines, inner_products, inner_products_and_square_norms
from ftrace.gradients.projection import Projection, pool, project
from ftrace.gradients.queries import QueryGradients
from ftrace.gradients.recording import Recording

__all__ = [
    "Coverage",
    "CoverageLine",
    "Dense",
    "GradientCapture",
    "Lookup",
    "Outer",
    "PerExampleGradients",
    "Projection",
    "QueryGradients",
    "Rates",
    "Recording",
    "cosines",
    "find_coverage",
    "inner_products",
    "inner_products_and_square_norms",
    "measured_rates",
    "pool",
    "project",
]
