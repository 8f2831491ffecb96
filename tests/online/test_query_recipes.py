"""The recipes of docs/queries.md: scores against TracIn by plain autograd of each measure, and where they point.

Measures are computed here one answer at a time, token by token, without padding; GPT-2 is float64 throughout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from ftrace.online import SelfCheckError, answer_log_probabilities, any_answer_log_probability
from ftrace.online.queries.query_losses import huggingface_losses
from helpers import own_parts, tiny
from helpers.queries_page import recipe

Measure = Callable[[Any, dict[str, Tensor]], Tensor]
LAYER = 1
DIRECTION = own_parts.gaussian(12, seed=5)
LENGTH = 7


def row(prompt: list[int], answer: list[int], **columns: Any) -> dict[str, Any]:
    gap = LENGTH - len(prompt) - len(answer)
    return {
        "input_ids": torch.tensor(prompt + answer + [0] * gap),
        "attention_mask": torch.tensor([1] * (LENGTH - gap) + [0] * gap),
        "labels": torch.tensor([-100] * len(prompt) + answer + [-100] * gap),
    } | columns


EXAMPLES = [
    row(p, a, example_id=i)
    for i, (p, a) in enumerate(
        [([4, 5, 6], [9, 10]), ([7, 8], [11]), ([4, 6], [9, 12, 1]), ([7, 5], [13, 14]), ([4], [10, 1]), ([8, 8], [9])]
    )
]
ANSWERS = {
    "margin": [[9, 10], [11]],
    "refusal": [[9], [9, 10], [12, 13]],  # the second one begins with the first
    "reward": [[9, 10, 1], [11, 1], [9, 12, 1]],
}
PROMPTS = [[4, 5], [7, 8, 6], [4, 6]]
REWARDS = torch.tensor([[1.0, 0.0, 0.5], [0.0, -1.0, 2.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
THEN = torch.tensor([[-3.0, -2.5, -6.0], [-5.0, -4.0, -7.0], [-6.0, -3.0, -5.0]], dtype=torch.float64)


def queries_of(behaviour: str) -> list[dict[str, Any]]:
    if behaviour == "probe":
        return [row(prompt, [], query_id=i) for i, prompt in enumerate(PROMPTS)]
    return [
        default_collate([row(prompt, answer) for answer in ANSWERS[behaviour]])
        | {"query_id": i, "reward": REWARDS[i], "log_p_then": THEN[i]}
        for i, prompt in enumerate(PROMPTS)
    ]


def log_p(model: Any, texts: Tensor, labels: Tensor) -> Tensor:
    """Of one row."""
    answer = labels[labels != -100].tolist()
    ids = texts[: int((labels != -100).nonzero().max()) + 1]
    rows = model(input_ids=ids[None]).logits[0, len(ids) - len(answer) - 1 : -1]
    return sum(row.log_softmax(0)[token] for row, token in zip(rows, answer, strict=True))  # type: ignore[return-value]


def log_ps(model: Any, query: dict[str, Tensor]) -> list[Tensor]:
    return [log_p(model, ids, labels) for ids, labels in zip(query["input_ids"], query["labels"], strict=True)]


def margin(model: Any, query: dict[str, Tensor]) -> Tensor:
    chosen, rejected = log_ps(model, query)
    return chosen - rejected


def sampled_reward(model: Any, query: dict[str, Tensor]) -> Tensor:
    weighted = [
        r * p.exp() / q.exp()
        for p, r, q in zip(log_ps(model, query), query["reward"], query["log_p_then"], strict=True)
    ]
    return torch.stack(weighted).mean()


def given_reward(model: Any, query: dict[str, Tensor]) -> Tensor:
    chances = torch.stack([p.exp() for p in log_ps(model, query)])
    return (chances / chances.sum() * query["reward"]).sum()


def refusal(model: Any, query: dict[str, Tensor]) -> Tensor:
    first, _, third = (p.exp() for p in log_ps(model, query))
    return torch.logit(first + third)


def activation(model: Any, query: dict[str, Tensor]) -> Tensor:
    ids = query["input_ids"][: int(query["attention_mask"].sum())]
    return model(input_ids=ids[None], output_hidden_states=True).hidden_states[LAYER][0, -1] @ DIRECTION


class Behaviour(NamedTuple):
    """A measure as it is computed here, its recipe, the queries it asks, and an example that is sure to raise it."""

    measure: Measure
    recipe: Callable[[Any, Any], Tensor]
    queries: str
    helpful: list[int] | None


BEHAVIOURS = {
    "margin": Behaviour(margin, recipe("margin_losses"), "margin", [9, 10]),
    "sampled reward": Behaviour(sampled_reward, recipe("reward_losses"), "reward", [9, 10, 1]),
    "given reward": Behaviour(given_reward, recipe("given_reward_losses"), "reward", [9, 10, 1]),
    "refusal": Behaviour(refusal, recipe("refusal_losses"), "refusal", [9]),
    "probe": Behaviour(activation, recipe("probe_losses", LAYER=LAYER, direction=DIRECTION), "probe", None),
}
each_behaviour = pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=BEHAVIOURS)


def answer_losses(module: Any, batch: Any) -> Tensor:
    logits = module.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], ignore_index=-100, reduction="none").sum(1)


def step(module: Any, batch: Any) -> Tensor:
    return answer_losses(module, batch).mean()


def share(module: Any, batch: Any, i: int) -> Tensor:
    return answer_losses(module, batch)[i] / len(batch["labels"])


def slowly(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=1e-5)


def measured(behaviour: Behaviour, module: Any, batch: dict[str, Any]) -> Tensor:
    """Minus the measure of each query, computed here."""
    rows = [{name: column[i] for name, column in batch.items()} for i in range(len(batch["query_id"]))]
    return torch.stack([-behaviour.measure(module.net, query) for query in rows])


def of_page(behaviour: Behaviour) -> Callable[[Any, Any], Tensor]:
    return lambda module, batch: behaviour.recipe(module.net, batch)


@each_behaviour
def test_scores_are_those_of_plain_autograd(behaviour: Behaviour, tmp_path: Path) -> None:
    module = own_parts.Own(step, net=tiny.gpt2())
    batches = [default_collate(EXAMPLES[i : i + 2]) for i in (0, 2, 4)]
    asked = queries_of(behaviour.queries)
    queries = [default_collate(asked[:2]), default_collate(asked[2:])]
    expected = own_parts.by_hand(
        module, batches, share, queries, lambda module, batch: measured(behaviour, module, batch), step
    )
    store = own_parts.traced(module, batches, tmp_path, queries, of_page(behaviour))
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(own_parts.found(store), expected, rtol=1e-9, atol=1e-11)


@each_behaviour
def test_a_score_is_by_how_much_one_step_on_the_example_raises_the_measure(
    behaviour: Behaviour, tmp_path: Path
) -> None:
    """To first order: steps are small. What says the behaviour itself raises it."""
    queries = [default_collate(queries_of(behaviour.queries)[:1])]
    rows = EXAMPLES[:3]
    if behaviour.helpful is not None:
        rows = [row(PROMPTS[0], behaviour.helpful, example_id=99), *rows]
    for example in rows:
        module = own_parts.Own(step, slowly, net=tiny.gpt2())
        before = measured(behaviour, copy.deepcopy(module), queries[0]).item()
        store = own_parts.traced(
            module, [default_collate([example])], tmp_path / str(example["example_id"]), queries,
            of_page(behaviour), self_check=False,
        )  # fmt: skip
        score = own_parts.found(store).item()
        assert before - measured(behaviour, module, queries[0]).item() == pytest.approx(score, rel=1e-2)
        assert score > 0 or example["example_id"] != 99


@pytest.mark.parametrize("make", [tiny.llama, tiny.t5, tiny.lora], ids=["llama", "t5", "lora"])
@pytest.mark.parametrize("name", ["margin", "refusal"])
def test_several_answers_to_a_query_in_other_models(name: str, make: Callable[[], Any], tmp_path: Path) -> None:
    """Against autograd of the recipe itself: parts of these models compute in float32."""
    model: Any = make()
    module = own_parts.Own(lambda module, batch: huggingface_losses(module, batch).mean(), net=model)
    batches = [default_collate(EXAMPLES[i : i + 3]) for i in (0, 3)]
    asked = [{n: c for n, c in query.items() if n not in ("reward", "log_p_then")} for query in queries_of(name)]
    queries = [default_collate(asked[:2]), default_collate(asked[2:])]
    losses = of_page(BEHAVIOURS[name])

    def alone(module: Any, batch: Any) -> Tensor:
        rows = [{n: column[i : i + 1] for n, column in batch.items()} for i in range(len(batch["query_id"]))]
        return torch.cat([losses(module, query) for query in rows])

    expected = own_parts.by_hand(
        module, batches, lambda module, batch, i: huggingface_losses(module, batch)[i] / 3, queries, alone
    )
    store = own_parts.traced(module, batches, tmp_path, queries, losses)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(own_parts.found(store), expected, rtol=1e-5, atol=1e-7)


def preference(module: Any, batch: Any) -> Tensor:
    return F.softplus(BEHAVIOURS["margin"].recipe(module.net, batch))


def success(module: Any, batch: Any) -> Tensor:
    rewards = batch["reward"].clamp(0, 1)
    return -torch.log(-BEHAVIOURS["given reward"].recipe(module.net, batch | {"reward": rewards}))


def any_opening(module: Any, batch: Any) -> Tensor:
    return -any_answer_log_probability(module, batch)


def says_yes(module: Any, batch: Any) -> Tensor:
    return -F.logsigmoid(-BEHAVIOURS["probe"].recipe(module.net, batch))


@pytest.mark.parametrize(
    ("queries", "losses"),
    [("margin", preference), ("reward", success), ("refusal", any_opening), ("probe", says_yes)],
)
def test_the_forms_for_learning_are_probabilities(queries: str, losses: Any, tmp_path: Path) -> None:
    module = own_parts.Own(step, net=tiny.gpt2())
    batches = [default_collate(EXAMPLES[i : i + 2]) for i in (0, 2)]
    asked = [default_collate(queries_of(queries))]
    store = own_parts.traced(module, batches, tmp_path, asked, losses, scores=("learning",), projection_side=2)
    assert store.matrix("learning").any(0).all()
    assert store.doubts("learning") == []


def test_a_loss_that_compares_queries_is_refused_or_read_exactly(tmp_path: Path) -> None:
    """Refused if whose gradient is whose can't be told, such as a reward minus the mean over queries."""

    def compared(module: Any, batch: Any) -> Tensor:
        rewards = (answer_log_probabilities(module, batch).softmax(1) * batch["reward"]).sum(1)
        return -(rewards - rewards.mean())

    def normalized(module: Any, batch: Any) -> Tensor:
        return -answer_log_probabilities(module, batch).sum(1).log_softmax(0)

    batches = [default_collate(EXAMPLES[:2])]
    queries = [default_collate(queries_of("reward"))]
    module = own_parts.Own(step, net=tiny.gpt2())
    expected = own_parts.by_hand(module, batches, share, queries, normalized)
    store = own_parts.traced(module, batches, tmp_path / "normalized", queries, normalized)
    torch.testing.assert_close(own_parts.found(store), expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(SelfCheckError, match=r"not what autograd gives\. A layer may mix queries"):
        own_parts.traced(own_parts.Own(step, net=tiny.gpt2()), batches, tmp_path / "compared", queries, compared)


@pytest.mark.parametrize("seed", range(4))
def test_a_margin_and_its_opposite_cancel_and_that_is_no_fault(seed: int, tmp_path: Path) -> None:
    """The check of conservation adds up queries' gradients with random signs."""
    batches = [default_collate(EXAMPLES[i : i + 2]) for i in (0, 2, 4)]
    query = queries_of("margin")[0]
    swapped = {name: query[name].flip(0) for name in ("input_ids", "attention_mask", "labels")} | {"query_id": 1}
    asked = {"input_ids", "attention_mask", "labels", "query_id"}
    queries = [default_collate([{name: one[name] for name in asked} for one in (query, swapped)])]
    module = own_parts.Own(step, net=tiny.gpt2())
    store = own_parts.traced(module, batches, tmp_path, queries, of_page(BEHAVIOURS["margin"]), seed=seed)
    matrix = own_parts.found(store)
    assert matrix.any()
    torch.testing.assert_close(matrix[:, 0], -matrix[:, 1], rtol=1e-9, atol=1e-12)


def test_layers_above_a_probe_have_no_part_in_it(tmp_path: Path) -> None:
    module = own_parts.Own(step, net=tiny.gpt2())
    queries = [default_collate(queries_of("probe"))]
    store = own_parts.traced(
        module, [default_collate(EXAMPLES[:3])], tmp_path, queries, of_page(BEHAVIOURS["probe"]), breakdown=("layer",)
    )
    parts = store.parts(0, "layer")
    assert any(parts[name].any() for name in parts if name.endswith("h.0"))
    assert not any(parts[name].any() for name in parts if name.endswith(("h.1", "ln_f")))
