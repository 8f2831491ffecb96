"""The engine: per-example gradients and their products. Pure torch; imports nothing else of ftrace."""

from ftrace.gradients.capture import GradientCapture, Recording
from ftrace.gradients.coverage import Coverage, CoverageLine, find_coverage
from ftrace.gradients.parts import Dense, Lookup, Outer
from ftrace.gradients.per_example import PerExampleGradients
from ftrace.gradients.products import QueryGradients, cosines, inner_products, inner_products_and_square_norms

__all__ = [
    "Coverage",
    "CoverageLine",
    "Dense",
    "GradientCapture",
    "Lookup",
    "Outer",
    "PerExampleGradients",
    "QueryGradients",
    "Recording",
    "cosines",
    "find_coverage",
    "inner_products",
    "inner_products_and_square_norms",
]
