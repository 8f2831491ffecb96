"""Counterfactuals: whether scores predict what happens when training examples are left out."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.evaluation.counterfactual.lds import datamodelling_scores, reliability
    from ftrace.evaluation.counterfactual.leave_out import LeftOut, effects, plan_facts, plan_top
    from ftrace.evaluation.counterfactual.subsets import Subsets, draw_kept, order_seed
    from ftrace.evaluation.counterfactual.tables import Counterfactual, render_counterfactual, write_counterfactual
else:
    __getattr__, __dir__ = late_names(__name__)

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
