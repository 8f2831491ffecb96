"""Tracing of a run in any training loop: contributions, scores, ledger, checks, resuming. Independent of Lightning."""

from ftrace.online.checks.failures import SelfCheckError
from ftrace.online.fabric_loop import FabricLoop
from ftrace.online.loop import TrainingLoop, TrainLoaders, Wording
from ftrace.online.plain_loop import PlainLoop
from ftrace.online.plain_trace import PlainTrace, trace
from ftrace.online.queries.answer_probabilities import answer_log_probabilities, any_answer_log_probability, log_odds
from ftrace.online.scoring.whitened import Whitening
from ftrace.online.session import TraceSession
from ftrace.online.settings import TraceSettings

__all__ = [
    "FabricLoop",
    "PlainLoop",
    "PlainTrace",
    "SelfCheckError",
    "TraceSession",
    "TraceSettings",
    "TrainLoaders",
    "TrainingLoop",
    "Whitening",
    "Wording",
    "answer_log_probabilities",
    "any_answer_log_probability",
    "log_odds",
    "trace",
]
