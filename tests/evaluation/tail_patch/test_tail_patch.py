"""Steps on single examples are what plain PyTorch makes of them, one at a time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ftrace.data import FtraceSynth, SynthSettings
from ftrace.evaluation.tail_patch import Adam, PatchedPairs, Sgd, StepRule, tail_patch
from ftrace.models import FactLM, OptimizerState, StackedFactLM, load_optimizer_states
from helpers import small_run

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
    assert np.abs(after / before - 1).max() > 0.01  # the steps did something


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


@pytest.mark.parametrize("answers", ["one", "any"])
@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("encoder-decoder", {**small_run.CONFIGS["encoder-decoder"], "tie_word_embeddings": False}),
        ("decoder-only", small_run.CONFIGS["decoder-only"]),
        ("decoder-only", LLAMA),
    ],
    ids=["T5", "GPT-2", "Llama"],
)
def test_rows_of_several_answers(answers: str, architecture: str, config: dict[str, Any], tmp_path: Path) -> None:
    facts = SynthSettings(num_entities=8, num_relations=3, num_facts=8, num_test_utterances=2)
    data = FtraceSynth(facts, str(tmp_path), architecture, query_batch_size=3)
    data.prepare_data()
    data.setup()
    assert data.has_several_answers
    torch.manual_seed(0)
    model = FactLM(config=config, answers=answers, embedding_std=0.5)
    model.build(data.tokenizer)
    model.double().eval()
    run = small_run.SmallRun(data, {}, [])
    found = tail_patch(model, data, pairs_of(run), Sgd(RATES["sgd"]))
    hold(found, one_by_one(model, run, pairs_of(run), "sgd", {}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunks_make_no_difference(
    runs: dict[str, small_run.SmallRun], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sizes = runs[architecture], []
    gradients = StackedFactLM.gradients

    def counted(stacked: StackedFactLM, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes.append(len(batch["labels"]))
        return gradients(stacked, batch)

    monkeypatch.setattr(StackedFactLM, "gradients", counted)
    model, pairs = run.load_model(run.snapshots[-1]), pairs_of(run)
    rule = rule_of("adam", run.snapshots[-1])
    whole = tail_patch(model, run.data, pairs, rule)
    assert sizes == [2, 6]  # first the check of two examples
    for budget, expected in ((1, [2, *[1] * 6]), (1_000_000, None)):
        sizes.clear()
        found = tail_patch(model, run.data, np.concatenate([pairs[::-1], pairs[:5]]), rule, budget)
        assert sum(sizes[1:]) == 6  # each example's gradient once
        assert sizes == expected or 1 < len(sizes[1:]) < 6
        np.testing.assert_array_equal(found.query_ids, whole.query_ids)
        np.testing.assert_array_equal(found.example_ids, whole.example_ids)
        np.testing.assert_allclose(found.after, whole.after, rtol=1e-12)
        np.testing.assert_array_equal(found.before, whole.before)


def test_no_pairs_are_no_trouble(runs: dict[str, small_run.SmallRun]) -> None:
    run = runs["decoder-only"]
    found = tail_patch(run.load_model(run.snapshots[-1]), run.data, np.zeros((0, 2)), Sgd(0.1))
    assert found.rises == {}


@pytest.mark.parametrize(
    ("pairs", "budget", "message"),
    [
        ([[999, 0]], 2**20, r"expected ids of the data's queries, found \[999\]"),
        ([[0, 100_000]], 2**20, "expected ids of the data's examples, 0 to 507, found 100000 to 100000"),
        ([[0, -1]], 2**20, "found -1 to -1"),
        ([[0, 0]], 0, "memory_budget: expected at least 1, found 0"),
    ],
)
def test_bad_input(pairs: list[list[int]], budget: int, message: str, runs: dict[str, small_run.SmallRun]) -> None:
    run = runs["decoder-only"]
    with pytest.raises(ValueError, match=message):
        tail_patch(run.load_model(run.snapshots[-1]), run.data, np.array(pairs), Sgd(0.1), budget)


def state(**changes: Any) -> OptimizerState:
    settings = {"betas": [0.9, 0.999], "eps": 1e-8, "amsgrad": False}
    given = {"optimizer": "torch.optim.adamw.AdamW", "settings": settings, "moments": {"exp_avg_sq": torch.ones(2)}}
    return OptimizerState(**{**given, "step": 3.0, **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sgd(0.0), "learning_rate: expected a number above 0, found 0.0"),
        (lambda: Sgd(float("nan")), "learning_rate: expected a number above 0, found nan"),
        (lambda: Adam(-1.0, {"w": state()}), "learning_rate: expected a number above 0"),
        (lambda: Adam(1.0, {}), "expected a snapshot with Adam's second moments, found none"),
        (lambda: Adam(1.0, {"w": state(optimizer="torch.optim.Adafactor")}), "of torch.optim.Adafactor for 'w'"),
        (lambda: Adam(1.0, {"w": state(settings={"amsgrad": True})}), "AdamW with amsgrad for 'w'"),
        (lambda: Adam(1.0, {"w": state()}).change("v", torch.ones(1, 2)), "no second moments of 'v'"),
    ],
)
def test_steps_that_are_not_known(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_element_that_has_hardly_seen_a_gradient_moves_by_a_bounded_step() -> None:
    rule = Adam(0.1, {"w": state(moments={"exp_avg_sq": torch.tensor([0.0, 1e-30])})})
    change = rule.change("w", torch.tensor([[0.0, 5.0]]))
    assert change[0, 0] == 0
    assert float(change[0, 1]) == pytest.approx(0.1 * ((1 - 0.999**4) / (1 - 0.999)) ** 0.5, rel=1e-5)


def test_models_that_look_at_values_are_refused(runs: dict[str, small_run.SmallRun]) -> None:
    run = runs["decoder-only"]
    model = run.load_model(run.snapshots[-1])
    plain = model.training_loss

    def looking(batch: dict[str, Tensor]) -> Tensor:
        return plain(batch) if batch["labels"].sum() else plain(batch) * 2

    model.training_loss = looking  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the model type 'gpt2' can't be run with many sets of weights at a time"):
        tail_patch(model, run.data, pairs_of(run), Sgd(0.1))


def test_models_that_take_masks_otherwise_are_refused(
    runs: dict[str, small_run.SmallRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["encoder-decoder"]
    batches = StackedFactLM._batches

    def without_masks(stacked: StackedFactLM, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return batches(stacked, {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])})

    monkeypatch.setattr(StackedFactLM, "_batches", without_masks)
    with pytest.raises(ValueError, match="gives other gradients or losses with many sets of weights at a time"):
        tail_patch(run.load_model(run.snapshots[-1]), run.data, pairs_of(run), Sgd(0.1))
