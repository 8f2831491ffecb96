"""The authors' layout and the oracle are two derivations of the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.per_cell import PerCell
from helpers.published_tracing import noise, noise_scale, probabilities, trace
from helpers.traceable_models import FAMILIES, prompt


@pytest.mark.parametrize(("kind", "mediator"), [(None, "hidden"), ("mlp", "mlp"), ("attn", "attention")])
@pytest.mark.parametrize("window", [2, 3])
def test_agrees_with_one_forward_per_cell(kind: str | None, mediator: str, window: int) -> None:
    model = FAMILIES["gpt2"].build(attn_implementation="eager")
    some = prompt(model)
    draws = noise(noise_scale(model, [[3, 4], [5, 6, 7]]), 2, model.config.n_embd, samples=3)
    found = trace(model, some["input_ids"], some["subject"], draws, kind, window)
    some |= {"noise": draws, "answers": [(found.prediction,)]}
    oracle = PerCell(model, FAMILIES["gpt2"].stacks["decoder"], **some)
    assert found.clean == pytest.approx(oracle.clean()[0].item(), rel=1e-12)
    assert found.corrupted == pytest.approx(oracle.corrupted()[:, 0].mean().item(), rel=1e-12)
    torch.testing.assert_close(found.restored, oracle.grid(mediator, window)[0], rtol=1e-12, atol=1e-14)


def test_noise_is_drawn_as_published() -> None:
    model = FAMILIES["gpt2"].build()
    table = model.transformer.wte.weight.detach().numpy()
    scale = noise_scale(model, [[3, 4], [3], [5, 6, 7]])
    assert scale == pytest.approx(3 * table[[3, 4, 3, 5, 6, 7]].std(ddof=1), rel=1e-12)
    drawn = noise(scale, 2, 12)
    assert drawn.shape == (10, 2, 12)
    np.random.seed(1)
    np.testing.assert_array_equal(drawn.numpy(), scale * np.random.randn(10, 2, 12))


def test_the_first_row_of_a_batch_stays_clean() -> None:
    """With everything restored at all tokens, the corrupted rows are the clean one."""
    model = FAMILIES["gpt2"].build(attn_implementation="eager")
    some = prompt(model)
    states = [("transformer.h.0", token) for token in range(6)]
    found = probabilities(model, some["input_ids"], some["subject"], some["noise"], states)
    with torch.no_grad():
        clean = model(torch.tensor([some["input_ids"]])).logits[0, -1].softmax(-1)
    torch.testing.assert_close(found, clean, rtol=1e-12, atol=1e-14)
