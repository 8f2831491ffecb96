"""The checks of ``benchmarks/gpu.py``: where there is a GPU, it finds what the CPU does."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CHECKS = (
    "of_scores", "of_training", "of_precisions", "of_index", "of_resumed", "of_skipped_steps", "of_grids",
    "of_compiled",
)  # fmt: skip


@pytest.fixture(scope="module")
def exactness() -> Any:
    return importlib.import_module("gpu_parts.exactness")


def test_all_checks_are_run_here(exactness: Any) -> None:
    assert {check.__name__ for check in exactness.CHECKS} == set(CHECKS)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "lora"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_gpu_finds_what_the_cpu_does(check: str, kind: str, exactness: Any) -> None:
    try:
        lines = list(getattr(exactness, check)(kind, "cuda"))
    except exactness.LeftOutError as why:
        pytest.skip(str(why))
    assert lines
    assert [line for line in lines if not line.is_right] == []
