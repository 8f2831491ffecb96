"""Examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import ftrace
import ftrace.callbacks

ROOT = Path(__file__).parents[1]
# Both are walked: the folder of ftrace.callbacks need not be in that of ftrace.
MODULES = sorted(
    {
        module.name
        for package in (ftrace, ftrace.callbacks)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_file_with_examples_is_run() -> None:
    written = {
        file.resolve()
        for folder in ("ftrace", "callbacks")
        for file in (ROOT / folder).glob("**/*.py")
        if ">>> " in file.read_text()
    }
    run = set()
    for name in MODULES:
        module = importlib.import_module(name)
        if any(test.examples for test in doctest.DocTestFinder().find(module)):
            run.add(Path(str(module.__file__)).resolve())
    assert run == written
    assert len(written) >= 8
