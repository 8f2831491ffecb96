"""Retrainings of a run's model, each without some of its training data."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.retraining.outcomes import Budget, QueryOutcome
    from ftrace.retraining.retrainer import Retrainer
    from ftrace.retraining.work import Retraining, claim_folder, do_retrainings, without
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = ["Budget", "QueryOutcome", "Retrainer", "Retraining", "claim_folder", "do_retrainings", "without"]
