"""Tracing in Hugging Face's Trainer, and in TRL's trainers, which are made of it. Needs ``pip install ftrace[hf]``."""

from importlib.util import find_spec

if find_spec("accelerate") is None:
    raise ImportError("ftrace.hf needs accelerate, as transformers.Trainer does: pip install 'ftrace[hf]'")

from ftrace.hf.callback import OnlineTracInCallback

__all__ = ["OnlineTracInCallback"]
