"""Steps on single examples are what plain PyTorch makes of them, one at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
import torch

from ftrace.evaluation import Adam, Sgd, tail_patch
from ftrace.evaluation.step_rules import StepRule
from ftrace.evaluation.tail_patch import PatchedPairs
from ftrace.models import FactLM, OptimizerState, load_optimizer_states

ARCHITECTURES = ["encoder-decoder", "decoder-only"]
LLAMA = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32,
}  # fmt: skip
RATES = {"sgd": 0.3, "adam": 0.01}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, small_run.SmallRun]:
    return {name: small_run.make(name, tmp_path_factory.mktemp(name)) for name in ARCHITECTURES}


def pairs_of(run: small_run.SmallRun) -> np.ndarray:
    """Each of some examples of different lengths with one to four queries, and not in order."""
    examples = [0, 3, 40, 41, 77, 100]
    queries = [row["query_id"] for row in run.data.query_rows]
    return np.array([(queries[(i * j) % 4], example) for i, example in enumerate(examples) for j in range(3, -1, -1)])


def rule_of(optimizer: str, snapshot: Path) -> StepRule:
    rate = RATES[optimizer]
    return Sgd(rate) if optimizer == "sgd" else Adam(rate, load_optimizer_states(snapshot))


def one_by_one(
    model: FactLM, run: small_run.SmallRun, pairs: np.ndarray, optimizer: str, states: dict[str, OptimizerState]
) -> dict[tuple[int, int], tuple[float, float]]:
    """For each pair: copy the model, a backward pass, a step of torch's own optimizer, a forward pass."""
    collate: Any = run.data.query_dataloader().collate_fn
    queries = {row["query_id"]: collate([row]) for row in run.data.query_rows}
    found = {}
    for query, example in {tuple(pair) for pair in pairs.tolist()}:
        patched = copy.deepcopy(model)
        parameters = dict(patched.named_parameters())
        chosen: torch.optim.Optimizer
        if optimizer == "sgd":
            chosen = torch.optim.SGD(parameters.values(), lr=RATES["sgd"])
        else:
            chosen = torch.optim.AdamW(parameters.values(), lr=RATES["adam"], betas=(0.0, 0.999), weight_decay=0.0)
            for name, parameter in parameters.items():
                chosen.state[parameter] = {
                    "step": torch.tensor(states[name].step), "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": states[name].moments["exp_avg_sq"].clone(),
                }  # fmt: skip
        patched.training_step(collate([run.data.train_rows[example]]), 0).backward()
        chosen.step()
        with torch.no_grad():
            losses = [float(one.example_losses(queries[query])) for one in (model, patched)]
        found[query, example] = (float(np.exp(-losses[0])), float(np.exp(-losses[1])))
    return found


def hold(found: PatchedPairs, expected: dict[tuple[int, int], tuple[float, float]]) -> None:
    pairs = list(zip(found.query_ids.tolist(), found.example_ids.tolist(), strict=True))
    assert pairs == sorted(expected)
    before, after = np.array([expected[pair] for pair in pairs]).T
    np.testing.assert_allclose(found.before, before, rtol=1e-9, atol=0)
    np.testing.assert_allclose(found.after, after, rtol=1e-9, atol=0)
    assert np.abs(after / before - 1).max() > 0.05  # the steps did something


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_as_one_by_one(runs: dict[str, small_run.SmallRun], architecture: str, optimizer: str) -> None:
    run = runs[architecture]
    model, states = run.load_model(run.snapshots[-1]), load_optimizer_states(run.snapshots[-1])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pairs = pairs_of(run)
    found = tail_patch(model, run.data, pairs, rule_of(optimizer, run.snapshots[-1]))
    hold(found, one_by_one(model, run, pairs, optimizer, states))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
