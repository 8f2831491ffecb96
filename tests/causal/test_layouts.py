"""The layouts that the benchmark of causal tracing compares all give the oracle's numbers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.per_cell import PerCell
from helpers.traceable_models import FAMILIES, prompt

FILE = Path(__file__).parents[2] / "benchmarks" / "causal_layouts.py"


@pytest.fixture(scope="module")
def layouts() -> Any:
    spec = importlib.util.spec_from_file_location("causal_layouts", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_layouts_agree_with_one_forward_per_cell(layouts: Any, attention: str) -> None:
    model = FAMILIES["gpt2"].build(attn_implementation=attention)
    some = prompt(model, samples=3, answers=((5,),))
    oracle = PerCell(model, FAMILIES["gpt2"].stacks["decoder"], **some)
    expected = torch.stack([oracle.grid(mediator)[0] for mediator in layouts.MEDIATORS])
    given = (model, torch.tensor(some["input_ids"]), some["subject"], some["noise"], 5)
    for found in (
        layouts.forward_per_cell(*given),
        layouts.published_layout(*given),
        layouts.rows_of_full_forwards(*given),
        layouts.rows_of_full_forwards(*given, budget=40),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
