"""Examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import ftrace

MODULES = sorted(module.name for module in pkgutil.walk_packages(ftrace.__path__, "ftrace."))
MODULES += ["ftrace.callbacks.checkpoint_snapshots", "ftrace.callbacks.online_tracin"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_some() -> None:
    found = (doctest.DocTestFinder().find(importlib.import_module(name)) for name in MODULES)
    assert sum(bool(test.examples) for tests in found for test in tests) >= 8
