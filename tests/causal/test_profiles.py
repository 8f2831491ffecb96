"""Layer profiles of causal effects, and their join to profiles of scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

from ftrace.causal import CausalTracer, PromptTrace, Stack
from ftrace.causal.joined import join_profiles
from ftrace.causal.profiles import effect_profile, flat_stacks
from ftrace.evaluation.layer_profiles import ScoreProfile
from helpers.made_traces import left_out, made_trace

ONE: dict[Stack, list[str]] = {"decoder": [f"transformer.h.{layer}" for layer in range(11)]}
TWO: dict[Stack, list[str]] = {
    "encoder": [f"encoder.block.{layer}" for layer in range(3)],
    "decoder": [f"decoder.block.{layer}" for layer in range(3)],
}


def traced(query: int, num_layers: int = 11, *, encoder: bool = False) -> PromptTrace:
    given = ("<pad>", "<mask>") if encoder else ()
    found = made_trace(f"query {query}", num_layers, seed=query, decoder_tokens=given, fact=f"fact {query // 2}")
    return replace(found, query_id=query)


def scores_of(query: int, parts: list[str]) -> ScoreProfile:
    values = np.random.default_rng(100 + query).normal(size=len(parts)).tolist()
    return ScoreProfile(query, dict(zip(parts, values, strict=True)), np.array([4, 2]), np.array([1.0, 0.5]))


@pytest.mark.parametrize("reduction", ["sum", "largest", "place"])
@pytest.mark.parametrize("encoder", [False, True])
def test_profile_equals_a_plain_loop(reduction: str, encoder: bool) -> None:
    names = TWO if encoder else {"decoder": ONE["decoder"][:3]}
    trace = traced(1, 3, encoder=encoder)
    found = effect_profile(trace, names, "mlp", reduction, "log_probability")  # type: ignore[arg-type]
    expected = {}
    for stack, own in trace.stacks.items():
        for layer in range(3):
            effects = [own.restored["mlp"][1, layer, place] - trace.corrupted[1] for place in range(len(own.tokens))]
            place = 2 if own.subject == (1, 3) else 1  # "Needle" ends the subject; "<mask>" is last
            expected[names[stack][layer]] = {"sum": sum(effects), "largest": max(effects), "place": effects[place]}[
                reduction
            ]
    assert list(found) == [name for own in names.values() for name in own]
    assert found == pytest.approx(expected)


def test_effects_are_not_clipped() -> None:
    trace = replace(traced(1, 3), corrupted=np.full(3, 5.0))
    assert max(effect_profile(trace, {"decoder": ONE["decoder"][:3]}, reduction="largest").values()) < 0


@pytest.mark.parametrize(
    ("trace", "options", "message"),
    [
        (left_out(), {}, "a prompt that was traced, found 'left_out' with status 'wrong': rank 7"),
        (traced(1), {"mediator": "attention"}, "expected a mediator that was traced in the decoder.*found 'attention'"),
        (traced(1), {"reduction": "mean"}, "reduction: expected one of .*found 'mean'"),
        (traced(1, 5), {}, "expected names of the 5 layers of its decoder, found 11. Is it the trace of another"),
    ],
)
def test_bad_input(trace: PromptTrace, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effect_profile(trace, ONE, **options)  # type: ignore[arg-type]


def test_a_window_over_all_layers_is_found_out() -> None:
    same, differ = {"a.0": 1.0, "a.1": 1.0, "b.0": 2.0}, {"a.0": 1.0, "a.1": 1.5, "b.0": 2.0}
    names: dict[Stack, list[str]] = {"encoder": ["a.0", "a.1"], "decoder": ["b.0"]}
    assert flat_stacks([same, same], names) == ["encoder"]
    assert flat_stacks([same, differ], names) == []


def test_a_tracer_names_the_layers_of_its_model() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=11, n_head=2, n_positions=32, vocab_size=40)).eval()
    assert CausalTracer(gpt2).layer_names == {"decoder": tuple(ONE["decoder"])}
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=3, num_heads=2, vocab_size=40, decoder_start_token_id=0)
    t5 = T5ForConditionalGeneration(config).eval()
    assert CausalTracer(t5).layer_names == {stack: tuple(names) for stack, names in TWO.items()}
    for model, names in ((gpt2, ONE), (t5, TWO)):
        known = dict(model.named_modules())
        assert all(name in known for own in names.values() for name in own)


@pytest.mark.parametrize("encoder", [False, True])
def test_layers_are_joined_by_their_whole_names(encoder: bool) -> None:
    names = TWO if encoder else ONE
    count = 3 if encoder else 11
    parts = ["model.shared", *[f"model.{name}" for own in names.values() for name in reversed(own)]]
    traces = [*[traced(query, count, encoder=encoder) for query in range(4)], left_out()]
    profiles = [scores_of(query, parts) for query in range(4)]
    joined = join_profiles(traces, profiles[::-1], names, kind="dot", summed_over="some examples")
    assert [layer.part for layer in joined.layers] == [f"model.{name}" for own in names.values() for name in own]
    assert [(layer.stack, layer.number) for layer in joined.layers] == [
        (stack, number) for stack in names for number in range(count)
    ]
    for query, profile in zip(joined.queries, profiles, strict=True):
        assert query.profile is profile
        assert query.scores.tolist() == [profile.parts[layer.part] for layer in joined.layers]
        own = effect_profile(query.trace, names)
        assert query.effects.tolist() == [own[layer.part.removeprefix("model.")] for layer in joined.layers]
        assert query.share_outside == pytest.approx(profile.parts["model.shared"] / sum(profile.parts.values()))
    assert (joined.outside, joined.without_scores, joined.left_out) == (("model.shared",), (), 1)
    assert joined.agreement.num_queries == 4
    assert any("of the scores are of parts that are in none of these layers" in note for note in joined.notes)


def test_what_only_one_side_knows_is_said() -> None:
    parts = [f"model.transformer.h.{layer}" for layer in (1, 10)]
    joined = join_profiles(
        [traced(0), traced(1)], [scores_of(query, parts) for query in (0, 1)], ONE, kind="dot", summed_over="all"
    )
    assert [layer.part for layer in joined.layers] == parts
    assert [layer.number for layer in joined.layers] == [1, 10]
    assert joined.without_scores == tuple(f"transformer.h.{layer}" for layer in (0, *range(2, 10)))
    assert "with 2 layers a rank correlation is +1 or -1: it says little" in joined.notes
    assert all(abs(query.correlation) == pytest.approx(1) for query in joined.queries)


PARTS = [f"model.{name}" for name in ONE["decoder"]]


def test_a_query_without_a_correlation_is_counted() -> None:
    constant = replace(scores_of(0, PARTS), parts=dict.fromkeys(PARTS, 1.0))
    joined = join_profiles([traced(0), traced(1)], [constant, scores_of(1, PARTS)], ONE, kind="dot", summed_over="all")
    assert np.isnan(joined.queries[0].correlation)
    assert "1 queries have a profile that is the same in all layers, and no correlation" in joined.notes


def test_queries_of_no_known_fact_are_facts_of_their_own() -> None:
    """So that intervals draw them one by one, and profiles of the others are compared with theirs."""
    profiles = [scores_of(query, PARTS) for query in range(4)]
    found = []
    for fact in ("fact {}", None):
        traces = [replace(traced(query), fact=fact and fact.format(query)) for query in range(4)]
        found.append(join_profiles(traces, profiles, ONE, kind="dot", summed_over="all"))
    assert np.isfinite([query.mismatched for query in found[1].queries]).all()
    assert [query.mismatched for query in found[0].queries] == [query.mismatched for query in found[1].queries]


def test_scores_of_two_stores_are_not_joined() -> None:
    others = scores_of(1, PARTS[:-1])
    with pytest.raises(ValueError, match="expected scores of one store, found queries with different parts"):
        join_profiles([traced(0), traced(1)], [scores_of(0, PARTS), others], ONE, kind="dot", summed_over="all")


def flat(query: int) -> PromptTrace:
    trace = traced(query)
    own = trace.stacks["decoder"]
    grids = {name: np.repeat(grid[:, :1], 11, axis=1) for name, grid in own.restored.items()}
    return replace(trace, stacks={"decoder": replace(own, restored=grids)})


@pytest.mark.parametrize(
    ("traces", "parts", "message"),
    [
        ([left_out()], ["model.transformer.h.0"], "at least one query that was traced, found none of 1"),
        ([made_trace()], ["model.transformer.h.0"], "'prompt': expected a query's, found no query_id"),
        ([traced(0), traced(0)], ["model.transformer.h.0"], "each query once, found 2 prompts of 1 queries"),
        ([traced(7)], ["model.transformer.h.0"], r"scores of each query that was traced, found none of \[7\]"),
        ([traced(0)], ["net.h.0"], "called as 'model.transformer.h.0', found scores of"),
        ([traced(0)], ["model.transformer.h.0"], "at least two layers, which can be ranked, found 1"),
        ([flat(0), flat(1)], ["model.transformer.h.0"], "the same in all layers of the decoder.*such as window: 1"),
    ],
)
def test_what_can_not_be_joined(traces: list[PromptTrace], parts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join_profiles(traces, [scores_of(0, parts), scores_of(1, parts)], ONE, kind="dot", summed_over="all")
