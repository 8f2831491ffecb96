"""Shared set-up: quiet, offline, and tests/helpers importable from anywhere."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
os.fsync = os.fstat  # type: ignore[assignment]  # no test outlives a power failure; waiting for the disk took a third

# Those that take longest begin first, so that no process is left with one of them when the others have ended.
LONGEST = (
    "test_study.py",
    "test_main_job.py",
    "test_processes.py",
    "test_causal_trace_command.py",
    "test_tracer.py",
    "test_in_browsers.py",
    "test_trainer_runs.py",
    "test_switched_adapters.py",
    "test_configs.py",
    "test_adapters.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: looking through it for garbage took a third of the time of finding the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
