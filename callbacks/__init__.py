"""Lightning callbacks that plug into any LightningModule. Imported as ``ftrace.callbacks``."""

from ftrace.callbacks.checkpoint_snapshots import CheckpointSnapshots
from ftrace.callbacks.online_tracin import OnlineTracIn
from ftrace.callbacks.self_check import SelfCheckError

__all__ = ["CheckpointSnapshots", "OnlineTracIn", "SelfCheckError"]
