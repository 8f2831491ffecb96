"""Counterfactuals: whether scores predict what happens when training examples are left out."""

from ftrace.evaluation.counterfactual.lds import datamodelling_scores, reliability
from ftrace.evaluation.counterfactual.leave_out import LeftOut, effects, plan_facts, plan_top
from ftrace.evaluation.counterfactual.subsets import Subsets, draw_kept, order_seed
from ftrace.evaluation.counterfactual.tables import Counterfactual, render_counterfactual, write_counterfactual

__all__ = [
    "Counterfactual",
    "LeftOut",
    "Subsets",
    "datamodelling_scores",
    "draw_kept",
    "effects",
    "order_seed",
    "plan_facts",
    "plan_top",
    "reliability",
    "render_counterfactual",
    "write_counterfactual",
]
