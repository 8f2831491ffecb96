"""Attribution methods that score a finished run. Each writes a score store."""

from ftrace.attribution.bm25 import score_by_bm25
from ftrace.attribution.snapshot_preconditioners import snapshot_preconditioners
from ftrace.attribution.tracin import score_by_tracin

__all__ = ["score_by_bm25", "score_by_tracin", "snapshot_preconditioners"]
