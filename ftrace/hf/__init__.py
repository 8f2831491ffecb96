"""Tracing in Hugging Face's Trainer, and in TRL's trainers, which are made of it. Needs ``pip install ftrace[hf]``."""

from ftrace.hf.callback import OnlineTracInCallback

__all__ = ["OnlineTracInCallback"]
