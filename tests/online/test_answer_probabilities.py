"""Probabilities of answers against plain passes over one answer at a time, token by token, without padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from ftrace.online import answer_log_probabilities, any_answer_log_probability, log_odds
from helpers import tiny

PROMPTS = [[4, 5, 6], [7, 8]]
ANSWERS = [[[9, 10], [11], [12, 1]], [[10], [9, 13, 14], [9]]]  # 1 is the end of the sequence


def padded(rows: list[list[int]], fill: int, *, left: bool) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[fill] * (longest - len(r)) + r if left else r + [fill] * (longest - len(r)) for r in rows])


def asked(answers: list[list[list[int]]] = ANSWERS, *, left: bool = False) -> dict[str, Tensor]:
    """``[2, K, T]``, padded."""
    texts = [p + a for p, of_query in zip(PROMPTS, answers, strict=True) for a in of_query]
    labels = [[-100] * len(p) + a for p, of_query in zip(PROMPTS, answers, strict=True) for a in of_query]
    mask = padded([[1] * len(text) for text in texts], 0, left=left)
    columns = {
        "input_ids": padded(texts, 3, left=left),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "labels": padded(labels, -100, left=left),
    }
    return {name: column.unflatten(0, (2, -1)) for name, column in columns.items()} | {"query_id": torch.arange(2)}


def alone(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, -len(answer) - 1 : -1]
    return sum(row.log_softmax(0)[token] for row, token in zip(logits, answer, strict=True))  # type: ignore[return-value]


def all_alone(model: Any) -> Tensor:
    rows = [[alone(model, p, a) for a in of_query] for p, of_query in zip(PROMPTS, ANSWERS, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])


class Around(nn.Module):
    """A module with a language model among its attributes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def lora() -> Any:
    model = peft.get_peft_model(tiny.llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        parameter.data += 0.1
    return model.double()


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(
    ("make", "tolerance"),
    [(tiny.gpt2, 1e-9), (tiny.llama, 1e-5), (lora, 1e-5)],  # norms of Llama are in float32
    ids=["gpt2", "llama", "lora"],
)
def test_of_decoders(make: Callable[[], Any], tolerance: float, left: bool) -> None:
    model = make().eval()
    found = answer_log_probabilities(Around(model), asked(left=left))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, all_alone(model), rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_autograd_one_answer_at_a_time() -> None:
    model = tiny.gpt2().eval()
    batch = asked()
    for q in range(2):
        for k in range(3):
            found = torch.autograd.grad(answer_log_probabilities(model, batch)[q, k], list(model.parameters()))
            expected = torch.autograd.grad(alone(model, PROMPTS[q], ANSWERS[q][k]), list(model.parameters()))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_one_answer_a_query() -> None:
    model = tiny.gpt2().eval()
    first = {name: column[:, 0] for name, column in asked().items() if name != "query_id"}
    torch.testing.assert_close(answer_log_probabilities(model, first), all_alone(model)[:, 0], rtol=1e-9, atol=1e-12)


def test_of_encoder_decoders() -> None:
    model = tiny.t5().eval()
    inputs = torch.tensor([[[4, 5], [4, 5]], [[6, 7], [6, 7]]])
    labels = torch.tensor([[[8, 1], [9, -100]], [[10, 11], [12, 1]]])
    found = answer_log_probabilities(model, {"input_ids": inputs, "labels": labels})
    for q in range(2):
        for k in range(2):
            answer = [int(token) for token in labels[q, k] if token != -100]
            start = torch.tensor([[0, *answer[:-1]]])
            logits = model(input_ids=inputs[q, k][None], decoder_input_ids=start).logits[0]
            expected = sum(row.log_softmax(0)[token] for row, token in zip(logits, answer, strict=True))
            torch.testing.assert_close(found[q, k], expected, rtol=1e-5, atol=1e-5)


def test_any_of_several_counts_what_contains_another_once() -> None:
    model = tiny.gpt2().eval()
    answers = [[[9], [9, 10], [11], [9]], [[13, 14], [13], [13, 14], [9, 13]]]
    expected = torch.stack([
        (alone(model, PROMPTS[0], [9]).exp() + alone(model, PROMPTS[0], [11]).exp()).log(),
        (alone(model, PROMPTS[1], [13]).exp() + alone(model, PROMPTS[1], [9, 13]).exp()).log(),
    ])  # fmt: skip
    found = any_answer_log_probability(model, asked(answers))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), list(model.parameters())),
        torch.autograd.grad(expected.sum(), list(model.parameters())),
        rtol=1e-9, atol=1e-12,
    )  # fmt: skip


def test_every_single_token_together_is_certain() -> None:
    model = tiny.gpt2().eval()
    everything = [[[token] for token in range(tiny.VOCABULARY)]] * 2
    torch.testing.assert_close(any_answer_log_probability(model, asked(everything)), torch.zeros(2).double())


@pytest.mark.parametrize("odds", [-300.0, -30.0, -1.0, 0.0, 2.0, 25.0, 33.0])
def test_log_odds_and_their_gradient_hold_where_probabilities_saturate(odds: float) -> None:
    """The gradient of log-odds with respect to themselves is 1."""
    x = torch.tensor(odds, dtype=torch.float64, requires_grad=True)
    found = log_odds(torch.stack([x, torch.zeros_like(x)]).log_softmax(0)[0])
    found.backward()
    assert found.item() == pytest.approx(odds, rel=1e-2, abs=1e-12)  # at 33, 1 - p has two digits left
    assert x.grad is not None
    assert float(x.grad) == pytest.approx(1.0, rel=1e-2)


def test_a_float32_model_keeps_log_odds_of_what_is_nearly_certain() -> None:
    model = tiny.gpt2(torch.float32).eval()
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states[-1][0, -1]
        model.lm_head.weight[9] = 25 * hidden / hidden.square().sum()
    batch = {name: column[:1] for name, column in asked([[[9]], [[9]]]).items() if name != "query_id"}
    odds = log_odds(answer_log_probabilities(model, batch))
    logits = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    others = torch.cat([logits[:9], logits[10:]]).logsumexp(0)
    assert odds.item() > 17, "1 - p is 0 in float32 from here on"
    torch.testing.assert_close(odds.item(), (logits[9] - others).item(), rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(odds.sum(), model.transformer.ln_f.weight)[0]
    expected = torch.autograd.grad(logits[9] - others, model.transformer.ln_f.weight)[0]
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-5)


def test_probabilities_above_1_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"log_odds: expected log-probabilities, at most 0, found 0\.182\. .*only one can"
    ):
        log_odds(torch.tensor([0.5, 1.2]).log())
    assert math.isinf(log_odds(torch.tensor(1e-8)))  # rounding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r'expected token ids "labels".*found keys \['),
        ({"labels": torch.ones(2, 2, 2, 2)}, r"found shape \(2, 2, 2, 2\)"),
        (
            {"attention_mask": torch.ones(2, 6)},
            r"expected 'attention_mask' as the labels, \(2, 3, 5\), .*found \(2, 6\)",
        ),
        ({"labels": torch.full((2, 3, 5), -100)}, r"labels for each answer, found none in the rows \[0, 1, 2, 3, 4\]"),
    ],
)
def test_bad_batches(change: dict[str, Any], message: str) -> None:
    batch = {name: column for name, column in (asked() | change).items() if column is not None}
    with pytest.raises(ValueError, match=message):
        answer_log_probabilities(tiny.gpt2(), batch)


def test_one_answer_is_no_any() -> None:
    one = {name: column[:, 0] for name, column in asked().items() if name != "query_id"}
    with pytest.raises(ValueError, match=r"K answers to each query, \[B, K, T\], found \(2, 5\)"):
        any_answer_log_probability(tiny.gpt2(), one)


def test_which_model_is_meant_must_be_known() -> None:
    two = Around(tiny.gpt2())
    two.other = tiny.llama()
    with pytest.raises(ValueError, match=r"exactly one among its attributes, found \['model', 'other'\] in Around"):
        answer_log_probabilities(two, asked())
    with pytest.raises(ValueError, match="found none in Linear"):
        answer_log_probabilities(nn.Linear(1, 1), asked())
