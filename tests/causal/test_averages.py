"""Average effects against plain loops, their intervals against one draw at a time, and what cannot be averaged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ftrace.causal import average_effects
from ftrace.causal.averages import EffectGrid, Peak, StackAverages
from ftrace.causal.positions import GIVEN, LAST, groups_of
from ftrace.causal.prompt_trace import OUTCOMES, PromptTrace, Stack
from helpers.made_traces import left_out, made_trace, made_traces


def values_of(
    traces: list[PromptTrace], stack: Stack, mediator: str, outcome: int, group: str, layer: int
) -> dict[str, float]:
    """One cell's effect for each prompt that has the group, by plain loops."""
    found = {}
    for trace in traces:
        places = groups_of(trace, stack)[group]
        cells = [
            trace.stacks[stack].restored[mediator][outcome, layer, place] - trace.corrupted[outcome] for place in places
        ]
        if cells:
            found[trace.name] = sum(cells) / len(cells)
    return found


def one_draw_at_a_time(values: dict[str, float], traces: list[PromptTrace], resamples: int, seed: int) -> np.ndarray:
    """Means of resampled facts, with the same draws."""
    keys = {trace.name: f"fact {trace.fact}" if trace.fact else f"prompt {trace.name}" for trace in traces}
    facts = sorted({keys[name] for name in values})
    found = []
    for draw in np.random.default_rng(seed).integers(len(facts), size=(resamples, len(facts))):
        drawn = [value for place in draw for name, value in values.items() if keys[name] == facts[place]]
        found.append(sum(drawn) / len(drawn))
    return np.array(found)


@pytest.mark.parametrize("encoder", [False, True])
def test_averages_and_intervals_are_those_of_plain_loops(encoder: bool) -> None:
    traces = made_traces(encoder=encoder)
    found = average_effects([*traces, left_out()], resamples=200, seed=3)
    for stack, own in found.stacks.items():
        for row, group in enumerate(own.groups):
            for outcome, name in enumerate(OUTCOMES):
                for layer in (0, 2):
                    cells = {
                        mediator: values_of(traces, stack, mediator, outcome, group, layer) for mediator in own.effects
                    }
                    taken = {one: cells["hidden"][one] - severed for one, severed in cells["attention_severed"].items()}
                    grids = [(own.effects[one][name], values) for one, values in cells.items()]
                    for grid, values in [*grids, (own.differences["attention_severed"][name], taken)]:
                        assert own.num_prompts[row] == len(values)
                        resampled = one_draw_at_a_time(values, traces, 200, 3)
                        wanted = [np.mean(list(values.values())), *np.quantile(resampled, [0.025, 0.975])]
                        got = [one[row, layer] for one in (grid.mean, grid.low, grid.high)]
                        np.testing.assert_allclose(got, wanted, rtol=1e-10)
    assert (list(found.stacks), found.num_facts) == (["encoder", "decoder"] if encoder else ["decoder"], 7)


def test_total_effects_are_paired_and_all_prompts_are_counted() -> None:
    traces = made_traces()
    found = average_effects([*traces, left_out("a"), left_out("b", "refused"), left_out("c")], resamples=500)
    assert found.num_prompts == {"traced": 12, "wrong": 2, "refused": 1}
    for place, outcome in enumerate(OUTCOMES):
        effects = {trace.name: trace.total_effect(outcome) for trace in traces}
        ends = np.quantile(one_draw_at_a_time(effects, traces, 500, 0), [0.025, 0.975])
        estimate = found.total_effect[outcome]
        assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((np.mean(list(effects.values())), *ends))
        assert found.clean[outcome].mean == pytest.approx(np.mean([trace.clean[place] for trace in traces]))
        assert found.corrupted[outcome].mean == pytest.approx(np.mean([trace.corrupted[place] for trace in traces]))


def test_long_subjects_count_no_more_than_short_ones() -> None:
    def with_effect(name: str, length: int, effect: float) -> PromptTrace:
        trace = made_trace(name, tokens=["x"] * (length + 2), subject=(0, length), mediators=["hidden"])
        grid = np.full((3, 3, length + 2), effect) + trace.corrupted[:, None, None]
        stack = dataclasses.replace(trace.stacks["decoder"], restored={"hidden": grid})
        return dataclasses.replace(trace, stacks={"decoder": stack})

    own = average_effects([with_effect("long", 12, 1.0), with_effect("short", 3, -2.0)], 50).stacks["decoder"]
    np.testing.assert_allclose(own.effects["hidden"]["probability"].mean[:4], -0.5)
    assert own.num_prompts.tolist() == [2, 2, 2, 2, 0, 2]
    assert own.differences == {}


def test_effects_below_0_and_beyond_the_total_are_kept() -> None:
    trace = made_trace(mediators=["hidden"])
    grid = np.full((3, 3, 5), 7.0)
    grid[:, 0] = -7.0
    stack = dataclasses.replace(trace.stacks["decoder"], restored={"hidden": grid})
    own = average_effects([dataclasses.replace(trace, stacks={"decoder": stack})]).stacks["decoder"]
    mean = own.effects["hidden"]["probability"].mean[own.num_prompts > 0]
    np.testing.assert_allclose(mean, [[-7.0 - trace.corrupted[0], *[7.0 - trace.corrupted[0]] * 2]] * len(mean))


def test_a_group_without_prompts_and_a_single_fact_have_no_numbers_to_show() -> None:
    traces = [made_trace(name, subject=(1, 2), seed=seed, fact="one") for seed, name in enumerate("ab")]
    own = average_effects(traces).stacks["decoder"]
    grid = own.effects["hidden"]["probability"]
    assert dict(zip(own.groups, own.num_prompts.tolist(), strict=True))["middle subject tokens"] == 0
    assert np.isnan(grid.mean[own.num_prompts == 0]).all()
    assert np.isfinite(grid.mean[own.num_prompts > 0]).all()
    assert np.isnan(grid.low).all()
    assert own.peak("hidden", group="middle subject tokens") is None


def test_the_order_of_mediators_in_a_prompt_does_not_matter() -> None:
    traces = made_traces()
    stack = traces[3].stacks["decoder"]
    turned = dataclasses.replace(stack, restored=dict(reversed(stack.restored.items())))
    mixed = [*traces[:3], dataclasses.replace(traces[3], stacks={"decoder": turned}), *traces[4:]]
    for mediator in stack.restored:
        want, got = (
            average_effects(one, 50).stacks["decoder"].effects[mediator]["probability"] for one in (traces, mixed)
        )
        np.testing.assert_array_equal(got.mean, want.mean)


def test_peaks_leave_out_what_restores_everything() -> None:
    traces = made_traces()
    for trace in traces:
        for grid in trace.stacks["decoder"].restored.values():
            grid[:, -1, -1] = 50.0
            grid[0, 1, trace.stacks["decoder"].subject[1] - 1] = 9.0
    own = average_effects(traces, 50).stacks["decoder"]
    hidden, severed, window = (own.peak(one) for one in ("hidden", "attention_severed", "mlp"))
    assert hidden is not None
    assert severed is not None
    assert window is not None
    assert (hidden.group, hidden.layer) == (severed.group, severed.layer) == ("last subject token", 1)
    assert (window.group, window.layer) == ("last token", 2)  # a module's output there need not restore everything
    grid = own.effects["hidden"]["probability"]
    row = own.groups.index("last subject token")
    assert (hidden.effect.mean, hidden.effect.low) == (grid.mean[row, 1], grid.low[row, 1])
    asked = own.peak("hidden", group="last token")
    assert asked is not None
    assert asked.layer == 2
    encoder = average_effects(made_traces(encoder=True), 50).stacks["encoder"].effects["hidden"]["probability"].mean
    peak = average_effects(made_traces(encoder=True), 50).stacks["encoder"].peak("hidden")
    assert peak is not None
    assert peak.effect.mean == np.nanmax(encoder)
    for wrong in (("mlp2", None), ("mlp", "first")):
        with pytest.raises(ValueError, match=r"expected one of the mediators \['hidden', .* found 'mlp"):
            own.peak(wrong[0], group=wrong[1])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    covered = []
    for trial in range(150):
        traces = []
        for number, effect in enumerate(np.repeat(generator.normal(0.2, 0.3, 12), 2)):  # two prompts of a fact, alike
            trace = made_trace(f"p{number}", 1, mediators=["hidden"], fact=f"{number // 2}")
            grid = np.full((3, 1, 5), effect) + trace.corrupted[:, None, None]
            stack = dataclasses.replace(trace.stacks["decoder"], restored={"hidden": grid})
            traces.append(dataclasses.replace(trace, stacks={"decoder": stack}))
        grids = average_effects(traces, 200, trial).stacks["decoder"].effects["hidden"]["probability"]
        covered.append(grids.low[0, 0] <= 0.2 <= grids.high[0, 0])
    assert 0.85 <= np.mean(covered) <= 0.99


BAD = [
    ([left_out("a")], "expected at least one prompt that was traced, found 1 prompts, none of them traced"),
    ([], "expected at least one prompt that was traced, found 0"),
    ([made_trace("a"), made_trace("a", seed=1)], "expected each prompt once, found 'a' 2 times"),
    (
        [made_trace("a"), made_trace("b", num_layers=4)],
        "found decoder/attention_severed to be of 3 layers and 6 groups of positions in prompt 'a' and of 4 layers",
    ),
    (
        [made_trace("a"), made_trace("b", mediators=["hidden", "mlp"])],
        "found decoder/attention_severed to be of 3 layers .* and missing in prompt 'b': average the prompts of",
    ),
    (
        [made_trace("a"), made_trace("b", decoder_tokens=["<pad>"])],
        "of 3 layers and 6 groups of positions in prompt 'a' and of 3 layers and 2 groups of positions in prompt 'b'",
    ),
]


@pytest.mark.parametrize(("traces", "message"), BAD)
def test_what_cannot_be_averaged_is_refused(traces: list[PromptTrace], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_effects(traces)


def peak_of(stack: Stack, groups: tuple[str, ...], mean: list[list[float]], group: str | None = None) -> Peak | None:
    grid = EffectGrid(*3 * [np.array(mean)])
    made = StackAverages(stack, groups, np.ones(len(groups), int), {"hidden": {"probability": grid}}, {})
    return made.peak("hidden", group=group)


def test_where_a_peak_is_looked_for_depends_on_who_reads_the_answer() -> None:
    """Beside a given decoder text, one cell is left out; without, all of the last token; and neither if asked for."""
    given, alone = (GIVEN, LAST), ("first subject token", LAST)
    mean = [[1.0, 2.0, 0.0], [3.0, 8.0, 9.0]]
    for stack, groups, group, expected in (
        ("decoder", given, None, (LAST, 1)),
        ("decoder", given, LAST, (LAST, 2)),
        ("decoder", alone, None, ("first subject token", 1)),
        ("decoder", alone, LAST, (LAST, 2)),
        ("encoder", alone, None, (LAST, 2)),
    ):
        peak = peak_of(stack, groups, mean, group)  # type: ignore[arg-type]
        assert peak is not None
        assert (peak.group, peak.layer) == expected, (stack, groups, group)


def test_a_peak_is_the_largest_effect_not_the_strongest() -> None:
    peak = peak_of("encoder", ("first subject token", LAST), [[-9.0, 0.5], [0.25, -1.0]])
    assert peak is not None
    assert (peak.group, peak.layer, peak.effect.mean) == ("first subject token", 1, 0.5)
