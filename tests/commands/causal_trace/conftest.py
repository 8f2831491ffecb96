"""Runs and a model to trace, and watches over what is traced and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftrace.causal import CausalTracer, PromptTrace
from helpers import traced_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the run of an architecture."""
    made: dict[str, Path] = {}

    def of(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = traced_run.make(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return of


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traced_run.save_pretrained(tmp_path_factory.mktemp("model") / "tiny-gpt2")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the prompts that are traced, in order."""
    seen: list[str] = []
    trace = CausalTracer.trace

    def counted(self: CausalTracer, prompt: Any, corruption: Any) -> PromptTrace:
        seen.append(prompt.prompt.name)
        return trace(self, prompt, corruption)

    monkeypatch.setattr(CausalTracer, "trace", counted)
    return seen


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the averages' pictures, which take longer than all else."""
    for name in ("plot_average", "plot_lines"):
        monkeypatch.setattr(f"ftrace.commands.causal_results.{name}", lambda *given: None)
