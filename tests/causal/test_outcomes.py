"""What is measured of logits, against brute force over every answer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ftrace.causal.outcomes import (
    AnswerGroup,
    answer_groups,
    best_rank,
    is_greedy,
    likeliest_other,
    log_probabilities,
    logit_differences,
)
from helpers.traceable_models import FAMILIES, prompt
from helpers.tracing import traced


def random_logits(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(1,)], [((), (1,))]),
        ([(1,), (2,), (1,)], [((), (1, 2))]),
        ([(1, 2), (5,), (1, 3), (4, 2)], [((1,), (2, 3)), ((), (5,)), ((4,), (2,))]),
        ([(1, 2), (1, 2, 3), (1,)], [((), (1,))]),
        ([(1, 2), (1, 2, 3), (3,)], [((1,), (2,)), ((), (3,))]),
        ([[1, 2], (1, 2)], [((1,), (2,))]),
    ],
)
def test_groups_of_answers(answers: Any, expected: Any) -> None:
    groups = answer_groups(answers)
    assert [(group.prefix, group.finals) for group in groups] == expected
    back = [(*group.prefix, final) for group in groups for final in group.finals]
    assert len(back) == len(set(back))
    for answer in map(tuple, answers):  # it is there, or one that it begins with
        assert sum(answer[: len(one)] == one for one in back) == 1
    assert {token for group in groups for token in group.first_tokens} == {answer[0] for answer in answers}


@pytest.mark.parametrize("rows", [1, 300])  # more than are measured at once
@pytest.mark.parametrize("prefix", [(), (2,), (2, 0)])
def test_probability_of_all_tokens_and_of_all_answers_together(rows: int, prefix: tuple[int, ...]) -> None:
    logits = random_logits(rows, 1 + len(prefix), 5)
    group = AnswerGroup(prefix, (1, 4))
    expected = torch.zeros(rows, dtype=torch.float64)
    for final in group.finals:
        steps = [logits[:, place].softmax(-1)[:, token] for place, token in enumerate((*prefix, final))]
        expected += torch.stack(steps).prod(0)
    torch.testing.assert_close(log_probabilities(logits, group).exp(), expected, rtol=1e-12, atol=0)


def test_probabilities_of_all_answers_sum_to_one() -> None:
    """Of one length, whichever way they are grouped."""
    steps = random_logits(1, 2, 5).repeat(1, 1, 1)
    groups = answer_groups(list(itertools.product(range(5), repeat=2)))
    assert len(groups) == 5
    total = sum(log_probabilities(steps, group).exp() for group in groups)
    torch.testing.assert_close(total, torch.ones(1, dtype=torch.float64))


def test_an_answer_of_no_probability_in_half_precision() -> None:
    """Logits of two bytes are taken to four before anything is added up."""
    exact = random_logits(4, 2, 30_000)
    group = AnswerGroup((3,), (5, 6))
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rounded = exact.to(dtype)
        found = log_probabilities(rounded, group)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), log_probabilities(rounded.double(), group), rtol=1e-5, atol=1e-5)
        differences = logit_differences(rounded, 3, 5)
        assert differences.dtype == torch.float32
        assert logit_differences(exact, 3, 5).dtype == log_probabilities(exact, group).dtype == torch.float64
    far = torch.tensor([[[200.0, 0.0, -200.0]]])
    assert log_probabilities(far, AnswerGroup((), (2,))).item() == -400
    assert log_probabilities(far, AnswerGroup((), (0, 1, 2))).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_differences_are_those_of_what_the_model_gave() -> None:
    logits = torch.tensor([[[1000.0, 0.25]]]).bfloat16()
    assert logits[0, 0, 0] - logits[0, 0, 1] == 1000  # in bfloat16
    assert logit_differences(logits, 0, 1).item() == 999.75


def test_logit_difference_is_where_the_answer_begins() -> None:
    logits = random_logits(3, 2, 6)
    torch.testing.assert_close(logit_differences(logits, 4, 1), logits[:, 0, 4] - logits[:, 0, 1])


@pytest.mark.parametrize(
    ("likeliest", "group", "expected"),
    [
        ([3], AnswerGroup((), (1, 3)), True),
        ([3], AnswerGroup((), (1, 2)), False),
        ([3, 1], AnswerGroup((3,), (2, 1)), True),
        ([3, 1], AnswerGroup((3,), (2,)), False),
        ([3, 1], AnswerGroup((2,), (1,)), False),
        ([3, 1, 0], AnswerGroup((3, 1), (0,)), True),
    ],
)
def test_greedy_answers(likeliest: list[int], group: AnswerGroup, expected: bool) -> None:
    logits = torch.nn.functional.one_hot(torch.tensor(likeliest), 4).double()
    assert is_greedy(logits, group) is expected


@pytest.mark.parametrize(
    ("logits", "tokens", "rank"),
    [
        ([3.0, 2.0, 1.0, 0.0], [0], 1),
        ([3.0, 2.0, 1.0, 0.0], [3], 4),
        ([3.0, 2.0, 1.0, 0.0], [3, 1], 2),
        ([3.0, 3.0, 1.0, 1.0], [1], 1),  # as likely as the likeliest is first, too
        ([3.0, 3.0, 1.0, 1.0], [3], 3),
        ([1.0, 1.0, 1.0, 1.0], [2, 2], 1),
    ],
)
def test_ranks(logits: list[float], tokens: list[int], rank: int) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        assert best_rank(torch.tensor(logits, dtype=dtype), tokens) == rank


def test_the_likeliest_other_token() -> None:
    logits = torch.tensor([3.0, 2.0, 5.0, 0.0])
    before = logits.clone()
    assert likeliest_other(logits, [0]) == 2
    assert likeliest_other(logits, [2, 0]) == 1
    assert likeliest_other(logits.bfloat16(), [2]) == 0
    assert torch.equal(logits, before)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_outcomes_of_runs(family: str) -> None:
    """By hand: the clean run of several answers, joint and of first tokens; the likeliest other token is the foil."""
    model = FAMILIES[family].build()
    answers = ((5, 7), (9,), (5, 3))
    given = prompt(model, answers=answers)

    def steps(answer: tuple[int, ...]) -> Tensor:
        """Logits where the answer's tokens are predicted."""
        if given["decoder_ids"] is None:
            ids = [*given["input_ids"], *answer[:-1]]
            return model(torch.tensor([ids])).logits[0, -len(answer) :].detach()
        decoder = torch.tensor([[*given["decoder_ids"], *answer[:-1]]])
        inputs = torch.tensor([given["input_ids"]])
        return model(input_ids=inputs, decoder_input_ids=decoder).logits[0, -len(answer) :].detach()

    def probability(answer: tuple[int, ...]) -> float:
        return float(torch.stack([p[t] for p, t in zip(steps(answer).softmax(-1), answer, strict=True)]).prod())

    first = steps((5,))[0]
    joint = traced(model, given)
    assert joint.clean[0] == pytest.approx(sum(map(probability, answers)), rel=1e-9)
    assert joint.clean[1] == pytest.approx(torch.tensor(joint.clean[0]).log().item(), rel=1e-9)
    assert joint.clean[2] == pytest.approx(float(first[5] - first[11]), rel=1e-9)
    assert joint.rank == int((first > first[[5, 9]].max()).sum()) + 1
    alone = traced(model, given, answer="first")
    assert alone.clean[0] == pytest.approx(probability((5,)) + probability((9,)), rel=1e-9)
    without_foil = traced(model, {**given, "foil": None})
    other = max((token for token in range(len(first)) if token not in (5, 9)), key=lambda token: float(first[token]))
    assert without_foil.clean[2] == pytest.approx(float(first[5] - first[other]), rel=1e-9)


def test_a_foil_that_begins_as_the_answer_does() -> None:
    model = FAMILIES["gpt2"].build()
    with pytest.raises(ValueError, match="foil: expected one that begins with another token than the answer"):
        traced(model, {**prompt(model, answers=((5, 7), (9,))), "foil": 9})


def test_answers_that_are_right_and_those_that_only_begin_so() -> None:
    model = FAMILIES["gpt2"].build()
    given = prompt(model)
    with torch.no_grad():
        first = int(model(torch.tensor([given["input_ids"]])).logits[0, -1].argmax())
        second = int(model(torch.tensor([[*given["input_ids"], first]])).logits[0, -1].argmax())
    right, begun, other = (first, second), (first, (second + 1) % 23), ((first + 1) % 23,)
    foil = (first + 2) % 23
    for answers, status in [((right,), "traced"), ((other, right), "traced"), ((begun,), "wrong"), ((other,), "wrong")]:
        trace = traced(model, {**given, "answers": answers, "foil": foil}, only_correct=True, mediators=("hidden",))
        assert trace.status == status
        assert (trace.rank == 1) == (answers != (other,))
    begins = traced(model, {**given, "answers": (begun,), "foil": foil}, only_correct=True)
    assert begins.reason == "the model begins as the answer does, and goes on otherwise"
    alone = traced(model, {**given, "answers": (begun,), "foil": foil}, only_correct=True, answer="first")
    assert alone.status == "traced"
