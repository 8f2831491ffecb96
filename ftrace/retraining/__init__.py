"""Retrainings of a run's model, each without some of its training data."""

from ftrace.retraining.retrainer import Budget, QueryOutcome, Retrainer
from ftrace.retraining.work import Retraining, claim_folder, do_retrainings, without

__all__ = ["Budget", "QueryOutcome", "Retrainer", "Retraining", "claim_folder", "do_retrainings", "without"]
