"""Lightning callbacks that plug into any LightningModule. Imported as ``ftrace.callbacks``."""

from ftrace.callbacks.checkpoint_snapshots import CheckpointSnapshots
from ftrace.callbacks.gradient_index_writer import GradientIndexWriter
from ftrace.callbacks.online_tracin import OnlineTracIn
from ftrace.online.checks.self_check import SelfCheckError
from ftrace.online.scoring.whitened import Whitening

__all__ = ["CheckpointSnapshots", "GradientIndexWriter", "OnlineTracIn", "SelfCheckError", "Whitening"]
