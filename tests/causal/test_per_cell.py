"""The oracle itself: what follows from the definitions, and a GPT-2 written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from helpers.per_cell import PerCell
from helpers.traceable_models import FAMILIES, prompt

CASES = [
    pytest.param(family, attention, stack, id=f"{family} {attention} {stack}")
    for family, given in FAMILIES.items()
    for attention in given.attentions
    for stack in given.stacks
]
EAGER = [case for case in CASES if case.values[1] == "eager"]
CAUSAL = [case for case in CASES if case.values[2] == "decoder"]
DECODER_ONLY = [case for case in CAUSAL if case in EAGER and not str(case.values[0]).startswith("t5")]
ONE_TOKEN = ((5,), (9,))
WINDOW = 2


def per_cell(family: str, attention: str, stack: str, **changes: Any) -> PerCell:
    model = FAMILIES[family].build(attn_implementation=attention)
    assert model.config._attn_implementation == attention
    changes = {**prompt(model, stack, answers=changes.pop("answers", ONE_TOKEN)), **changes}
    return PerCell(model, FAMILIES[family].stacks[stack], **changes)


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected.expand_as(found), rtol=tolerance, atol=tolerance)


def row(oracle: PerCell, mediator: str, layer: int, window: int = WINDOW) -> Tensor:
    """``[3, T]``, of the first sample."""
    cells = [oracle.restored(mediator, layer, place, 0, window) for place in range(oracle.places)]
    return torch.stack(cells, -1)


def kinds(oracle: PerCell) -> list[str]:
    return ["attention", "mlp"] + ["cross_attention"] * (oracle.modules.cross_attention is not None)


@pytest.mark.parametrize(("family", "attention", "stack"), EAGER)
def test_nothing_is_left_to_sever_above_the_last_layer(family: str, attention: str, stack: str) -> None:
    oracle = per_cell(family, attention, stack)
    last = oracle.layers - 1
    hidden = row(oracle, "hidden", last)
    for kind in kinds(oracle):
        assert torch.equal(row(oracle, f"{kind}_severed", last), hidden)
        assert not torch.allclose(row(oracle, f"{kind}_severed", 0), row(oracle, "hidden", 0), rtol=1e-6)


@pytest.mark.parametrize(("family", "attention", "stack"), CAUSAL)
def test_the_last_state_at_the_last_place_is_all_that_the_head_reads(family: str, attention: str, stack: str) -> None:
    oracle = per_cell(family, attention, stack)
    hidden = row(oracle, "hidden", oracle.layers - 1)
    same(hidden[:, -1], oracle.clean())
    same(hidden[:, :-1], oracle.corrupted()[0][:, None])


@pytest.mark.parametrize(("family", "attention", "stack"), DECODER_ONLY)
def test_no_noise_reaches_a_place_before_the_subject(family: str, attention: str, stack: str) -> None:
    oracle = per_cell(family, attention, stack, answers=((5, 7), (9,)))
    corrupted = oracle.corrupted()[0]
    for mediator in ("hidden", *kinds(oracle), "attention_severed", "mlp_severed"):
        for layer in range(oracle.layers):
            same(oracle.restored(mediator, layer, 0, 0, WINDOW), corrupted)


@pytest.mark.parametrize(("family", "attention", "stack"), EAGER)
def test_a_window_that_covers_all_layers_is_the_same_around_each(family: str, attention: str, stack: str) -> None:
    oracle = per_cell(family, attention, stack, answers=((5, 7), (9,)))
    for kind in kinds(oracle):
        widest = row(oracle, kind, 0, 2 * oracle.layers)
        assert torch.equal(row(oracle, kind, oracle.layers - 1, 2 * oracle.layers), widest)
        assert not torch.allclose(row(oracle, kind, 0, 1), widest, rtol=1e-6)


@pytest.mark.parametrize(("family", "attention", "stack"), EAGER)
def test_without_noise_every_run_is_the_clean_one(family: str, attention: str, stack: str) -> None:
    model = FAMILIES[family].build(attn_implementation=attention)
    oracle = per_cell(family, attention, stack, noise=0 * prompt(model)["noise"][:1], answers=((5, 7), (9,)))
    for mediator in ("hidden", *kinds(oracle), *(f"{kind}_severed" for kind in kinds(oracle))):
        same(row(oracle, mediator, 1), oracle.clean()[:, None])


@pytest.mark.parametrize(
    ("family", "stack"), [(family, stack) for family in FAMILIES for stack in FAMILIES[family].stacks]
)
def test_every_cell_that_can_matter_has_an_effect(family: str, stack: str) -> None:
    """Else an engine that does nothing would agree with the oracle."""
    oracle = per_cell(family, "eager", stack, answers=((5, 7), (9,)))
    effects = row(oracle, "hidden", 1 if oracle.layers > 2 else 0) - oracle.corrupted()[0][:, None]
    reached = slice(None) if family.startswith("t5") else slice(1, None)
    assert effects[1:, reached].abs().min() > 1e-4
    assert (oracle.clean() - oracle.corrupted()).abs().min() > 1e-5


def test_no_noise_is_seen_past_a_sliding_window() -> None:
    """Gemma 2's first layer sees three places: the last one of six sees none of the subject at places one and two."""
    oracle = per_cell("gemma2", "eager", "decoder")
    assert oracle.model.config.layer_types[:2] == ["sliding_attention", "full_attention"]
    for layer, reached in [(0, False), (1, True)]:
        found = oracle.restored("hidden", layer, 5, 0)
        assert torch.allclose(found, oracle.corrupted()[0], rtol=1e-6) != reached


@pytest.mark.parametrize(("family", "attention", "stack"), CASES)
def test_restoring_all_that_is_corrupted_undoes_it(family: str, attention: str, stack: str) -> None:
    """A prompt of one token that is the subject; the decoder of an encoder-decoder has a single place, too."""
    model = FAMILIES[family].build(attn_implementation=attention)
    one = {"input_ids": [6], "subject": (0, 1), "noise": prompt(model)["noise"][:, :1]}
    oracle = per_cell(family, attention, stack, **one, decoder_ids=[20] if family.startswith("t5") else None)
    mediator = "cross_attention" if oracle.modules.cross_attention else "hidden"
    same(oracle.grid(mediator, 2 * oracle.layers), oracle.clean()[:, None, None])
    assert not torch.allclose(oracle.grid("mlp", 1), oracle.clean()[:, None, None], rtol=1e-3)


def test_joint_probability_of_every_two_tokens_is_one() -> None:
    """Over all answers of two tokens, in any run."""
    model = FAMILIES["gpt2"].build()
    some = prompt(model, samples=1)
    alone = [PerCell(model, FAMILIES["gpt2"].stacks["decoder"], **{**some, "answers": [(i,)]}) for i in range(23)]
    same(sum(oracle.restored("mlp", 1, 3, 0) for oracle in alone)[0], torch.ones((), dtype=torch.float64))
    pairs = PerCell(model, FAMILIES["gpt2"].stacks["decoder"], **{**some, "answers": [(5, i) for i in range(23)]})
    same(pairs.restored("mlp", 1, 3, 0)[:2], alone[5].restored("mlp", 1, 3, 0)[:2])


Edits = dict[tuple[str, int, int], Tensor]  # by kind, layer and place


def gpt2_by_hand(model: Any, ids: list[int], noise: Tensor, start: int, edits: Edits) -> tuple[Tensor, Edits]:
    """GPT-2 in matrix algebra, token by token: logits ``[T, V]``, and all that it computed on its way."""
    weights = {name.removeprefix("transformer."): value for name, value in model.state_dict().items()}
    heads, width = model.config.n_head, model.config.n_embd
    head = width // heads
    found: Edits = {}

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def kept(kind: str, layer: int, x: list[Tensor]) -> list[Tensor]:
        for place, value in enumerate(x):
            found[kind, layer, place] = edits.get((kind, layer, place), value)
        return [found[kind, layer, place] for place in range(len(x))]

    x = [weights["wte.weight"][token] + weights["wpe.weight"][place] for place, token in enumerate(ids)]
    for i, extra in enumerate(noise):
        x[start + i] = x[start + i] + extra
    for layer in range(model.config.n_layer):
        name = f"h.{layer}"
        projected = [linear(f"{name}.attn.c_attn", norm(f"{name}.ln_1", state)) for state in x]
        outputs = []
        for place in range(len(ids)):
            mixed = []
            for h in range(heads):
                query, key, value = (slice(k * width + h * head, k * width + (h + 1) * head) for k in range(3))
                scores = [projected[place][query] @ projected[past][key] / math.sqrt(head) for past in range(place + 1)]
                shares = torch.stack(scores).exp()
                shares = shares / shares.sum()
                mixed.append(sum(share * projected[past][value] for past, share in enumerate(shares)))
            outputs.append(linear(f"{name}.attn.c_proj", torch.cat(mixed)))
        x = [state + output for state, output in zip(x, kept("attention", layer, outputs), strict=True)]
        outputs = []
        for state in x:
            inner = linear(f"{name}.mlp.c_fc", norm(f"{name}.ln_2", state))
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            outputs.append(linear(f"{name}.mlp.c_proj", inner))
        x = [state + output for state, output in zip(x, kept("mlp", layer, outputs), strict=True)]
        x = kept("hidden", layer, x)
    return torch.stack([norm("ln_f", state) @ weights["lm_head.weight"].T for state in x]), found


@pytest.mark.parametrize(("attention", "around"), [("eager", (-1, 0, 1)), ("sdpa", (-1, 0)), ("sdpa", (-2, -1, 0, 1))])
def test_agrees_with_gpt2_written_out_by_hand(attention: str, around: tuple[int, ...]) -> None:
    """``around``: the layers of a window, from the one that it is around."""
    model = FAMILIES["gpt2"].build(attn_implementation=attention)
    some = prompt(model)
    ids, (start, _), noise = some["input_ids"], some["subject"], some["noise"]
    oracle = PerCell(model, FAMILIES["gpt2"].stacks["decoder"], **some)
    layers, last = range(model.config.n_layer), len(ids) - 1

    def edited(clean: Edits, corrupted: Edits, mediator: str, layer: int, place: int) -> Edits:
        if mediator in ("mlp", "attention"):
            return {(mediator, k, place): clean[mediator, k, place] for k in layers if k - layer in around}
        severed = {"attention_severed": "attention", "mlp_severed": "mlp"}.get(mediator)
        edits = {(severed, k, place): corrupted[severed, k, place] for k in layers if severed and k > layer}
        return edits | {("hidden", layer, place): clean["hidden", layer, place]}

    def outcomes(extra: Tensor, mediator: str = "", layer: int = 0, place: int = 0) -> Tensor:
        both = [*ids, 5]  # the longer answer's first token
        _, clean = gpt2_by_hand(model, both, 0 * extra, start, {})
        _, corrupted = gpt2_by_hand(model, both, extra, start, {})
        edits = edited(clean, corrupted, mediator, layer, place) if mediator else {}
        logits, _ = gpt2_by_hand(model, both, extra, start, edits)
        shares = logits.exp() / logits.exp().sum(1, keepdim=True)
        probability = shares[last, 5] * shares[last + 1, 7] + shares[last, 9]
        return torch.stack([probability, probability.log(), logits[last, 5] - logits[last, 11]])

    with torch.no_grad():
        same(oracle.clean(), outcomes(0 * noise[0]), 1e-10)
        for sample, extra in enumerate(noise):
            same(oracle.corrupted()[sample], outcomes(extra), 1e-10)
        # Cells of all kinds, each layer and each place among them; all of them would take a minute.
        for mediator in ("hidden", "attention_severed", "mlp_severed", "mlp", "attention"):
            for layer, place in [(0, 2), (1, 1), (1, last), (2, 3), (2, 4), (3, 0), (3, last)]:
                found = oracle.restored(mediator, layer, place, 1, len(around))
                same(found, outcomes(noise[1], mediator, layer, place), 1e-10)
