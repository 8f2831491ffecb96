"""The cells at which an answer is read off: known from the kind of stack and mediator alone."""

from __future__ import annotations

import numpy as np
import pytest

from ftrace.causal import average_effects
from ftrace.causal.prompt_trace import Stack
from ftrace.causal.readout import readout_cells
from helpers.made_traces import made_traces


@pytest.mark.parametrize("mediator", ["hidden", "attention_severed", "mlp_severed", "cross_attention_severed"])
def test_they_are_where_a_layer_s_output_is_restored_at_the_last_token(mediator: str) -> None:
    reads = readout_cells("decoder", mediator, (4, 3), 3, reads_subject=True)
    assert np.argwhere(reads).tolist() == [[3, 0], [3, 1], [3, 2]]
    reads_an_encoder = readout_cells("decoder", mediator, (2, 3), 1, reads_subject=False)
    assert np.argwhere(reads_an_encoder).tolist() == [[1, 2]]


@pytest.mark.parametrize(("stack", "mediator"), [("encoder", "hidden"), ("decoder", "mlp"), ("decoder", "attention")])
def test_other_stacks_and_mediators_have_none(stack: Stack, mediator: str) -> None:
    assert not readout_cells(stack, mediator, (4, 3), 3, reads_subject=True).any()


@pytest.mark.parametrize("encoder", [False, True])
def test_no_peak_is_there_unless_its_group_is_asked_for(encoder: bool) -> None:
    stack = average_effects(made_traces(encoder=encoder), resamples=20).stacks["decoder"]
    for mediator, effects in stack.effects.items():
        effects["probability"].mean[stack.readout(mediator)] = 9.0  # far above all others
        peak, asked = stack.peak(mediator), stack.peak(mediator, group="last token")
        assert peak is not None
        assert asked is not None
        assert peak.effect.mean < 9
        assert (asked.effect.mean == 9) is bool(stack.readout(mediator).any())
