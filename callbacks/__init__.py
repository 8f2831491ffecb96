"""Lightning callbacks that plug into any LightningModule. Imported as ``ftrace.callbacks``."""

from ftrace.callbacks.checkpoint_snapshots import CheckpointSnapshots
from ftrace.callbacks.gradient_index_writer import GradientIndexWriter
from ftrace.callbacks.lightning_loop import LightningLoop
from ftrace.callbacks.online_tracin import OnlineTracIn
from ftrace.online import SelfCheckError, Whitening

__all__ = ["CheckpointSnapshots", "GradientIndexWriter", "LightningLoop", "OnlineTracIn", "SelfCheckError", "Whitening"]
