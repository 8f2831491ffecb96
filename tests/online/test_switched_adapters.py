"""Adapters that are switched, added, deleted or merged while a model is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn

from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import adapted, tiny
from helpers.adapted import (
    ASKED,
    COUNT,
    QUERIES,
    RATE,
    Batch,
    Training,
    batches,
    have_equal_weights,
    lora,
    losses,
    mean_loss,
    scores,
    sgd,
    two,
)  # fmt: skip
from helpers.oracle import relative_error
from helpers.own_parts import per_example


def each_step(model: Any, step: int) -> None:
    model.set_adapter(["default", "b"][step % 2])


def once(model: Any, step: int) -> None:
    model.set_adapter("default" if step < 3 else "b")


def then_both(model: Any, step: int) -> None:
    model.base_model.set_adapter(["default"] if step < 3 else ["default", "b"])


def then_one(model: Any, step: int) -> None:
    model.base_model.set_adapter(["default", "b"] if step < 3 else ["default"])


def merged(model: Any, step: int) -> None:
    """PEFT trains no adapter of a layer into which another is merged."""
    if step == 0:
        model.base_model.set_adapter(["default", "b"])
    if step == 3:
        model.merge_adapter(["default"])


def deleted(model: Any, step: int) -> None:
    if step == 3:
        model.delete_adapter("default")
        model.set_adapter("b")


SWITCHES = {
    "each step": each_step, "once": once, "then both": then_both, "then one": then_one, "merged": merged,
    "deleted": deleted,
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "eventual": {},
    "exact": {"momentum": "exact"},
    "trapezoid": {"momentum": "exact", "integration": "trapezoid", "refresh_every_n_steps": 2},
    "projected": {"momentum": "exact", "projection_side": 4},
}


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


@pytest.mark.parametrize("refresh", [1, 5])
@pytest.mark.parametrize("switch", SWITCHES)
def test_scores_are_those_of_a_replay(switch: str, refresh: int, tmp_path: Path) -> None:
    """Switching refreshes queries: their gradients before it are of another model."""
    model = two(both=switch in ("then one", "merged"))
    data, traced, plain = batches(6), copy.deepcopy(model), copy.deepcopy(model)
    store = Training(traced, data, SWITCHES[switch]).traced(tmp_path / "s", refresh_every_n_steps=refresh)
    if refresh == 1:
        assert relative_error(scores(store), Training(model, data, SWITCHES[switch]).by_hand()) < 1e-9
    else:
        assert store.manifest["refreshes"] == ([0, 1, 2, 3, 4, 5, 6] if switch == "each step" else [0, 3, 6])
    assert have_equal_weights(traced, Training(plain, data, SWITCHES[switch]).plain())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_books_balance(switch: str, way: str, tmp_path: Path) -> None:
    model = two(both=switch in ("then one", "merged"))
    training = Training(model, batches(6), SWITCHES[switch], adamw)
    store = training.traced(tmp_path / "s", scores=("dot", "update", "cosine"), **WAYS[way])
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-9


def test_a_frozen_adapter_stays_covered_and_the_other_is_trained(tmp_path: Path) -> None:
    def freeze(model: Any, step: int) -> None:
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.requires_grad_(step < 2)

    model = two(both=True)
    traced = copy.deepcopy(model)
    store = Training(traced, batches(4), freeze).traced(tmp_path / "s")
    assert relative_error(scores(store), Training(model, batches(4), freeze).by_hand()) < 1e-9


def test_an_adapter_that_is_added_later_is_covered_from_then_on(tmp_path: Path) -> None:
    def make() -> Training:
        training = Training(two(), batches(4))

        def add(model: Any, step: int) -> None:
            if step == 2:
                torch.manual_seed(3)
                model.add_adapter("c", lora(r=2, target_modules=["k_proj"]))
                model.double().set_adapter("c")
                added = [parameter for name, parameter in model.named_parameters() if ".c." in name]
                with torch.no_grad():
                    for parameter in added:
                        parameter += 0.2 * torch.randn_like(parameter)
                training.optimizer.add_param_group({"params": added, "lr": RATE})

        training.switch = add
        return training

    store = make().traced(tmp_path / "s")
    assert relative_error(scores(store), make().by_hand()) < 1e-9
    assert len(store.manifest["unfrozen"]["2"]) == 4


@pytest.mark.parametrize("active", ["default", "b"])
@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on(way: str, active: str, tmp_path: Path) -> None:
    """Adapters are switched before the kill, and after it."""

    def switch(model: Any, step: int) -> None:
        model.set_adapter("b" if step in (2, 3, 5) else "default")

    kinds = ("dot", "update")
    settings = {"scores": kinds, "refresh_every_n_steps": 2, **WAYS[way]}
    whole = Training(two(), batches(7), switch, adamw).traced(tmp_path / "whole", **settings)
    kept: dict[str, Any] = {}

    def save(step: int, run: Any) -> None:
        if step == 3:
            parts = (first.model, first.optimizer, run)
            kept["parts"] = copy.deepcopy([part.state_dict() for part in parts])
            raise KeyboardInterrupt

    first = Training(two(), batches(7), switch, adamw)
    with pytest.raises(KeyboardInterrupt):
        first.traced(tmp_path / "parts", save, **settings)
    second = Training(two(), batches(7)[4:], switch, adamw, first=4)
    for part, state in zip((second.model, second.optimizer), kept["parts"], strict=False):
        part.load_state_dict(state)
    second.model.set_adapter(active)
    resumed = second.traced(tmp_path / "parts", state=kept["parts"][2], **settings)
    for kind in kinds:
        np.testing.assert_allclose(resumed.matrix(kind), whole.matrix(kind), rtol=1e-9, atol=1e-14)
    assert resumed.manifest["refreshes"] == whole.manifest["refreshes"]
    assert resumed.manifest["ledger"]["worst_imbalance"] < 1e-9


def test_adapters_are_not_switched_between_a_backward_pass_and_its_step(tmp_path: Path) -> None:
    model = two(both=True)
    with trace(
        model, sgd(model), mean_loss, queries=QUERIES, query_losses=losses, output_dir=tmp_path / "s",
        precision="64-true",
    ) as run:  # fmt: skip
        first, second = batches(2)
        run.backward(run.loss(first))
        model.set_adapter("default")
        with pytest.raises(ValueError, match=r"switched between a backward pass and its optimizer step.*between steps"):
            run.loss(second)
        model.base_model.set_adapter(["default", "b"])
        run.backward(run.loss(second))


def with_adapters_off(model: Any, batch: Batch) -> torch.Tensor:
    with model.disable_adapter():
        return losses(model, batch)


def with_the_other_adapter(model: Any, batch: Batch) -> torch.Tensor:
    model.set_adapter("b")
    found = losses(model, batch)
    model.set_adapter("default")
    return found


@pytest.mark.parametrize("reference", [with_adapters_off, with_the_other_adapter])
def test_a_step_may_ask_a_reference(reference: Callable[[Any, Batch], torch.Tensor], tmp_path: Path) -> None:
    """As DPO does: the same model without its adapter, or with another one."""

    def preferences(model: Any, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            before = reference(model, batch)
        return nn.functional.softplus(losses(model, batch) - before)

    model, rows = two(), []
    plain, traced = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = sgd(plain)
    for batch in batches(3):
        asked = per_example(plain, list(losses(plain, ASKED)))
        of_batch = preferences(plain, batch) / COUNT
        rows.append(RATE * per_example(plain, list(of_batch)) @ asked.T)
        optimizer.zero_grad()
        preferences(plain, batch).mean().backward()
        optimizer.step()
    optimizer = sgd(traced)
    with trace(
        traced, optimizer, lambda model, batch: preferences(model, batch).mean(), queries=QUERIES,
        query_losses=losses, output_dir=tmp_path / "s", precision="64-true",
    ) as run:  # fmt: skip
        for batch in batches(3):
            optimizer.zero_grad()
            run.backward(run.loss(batch))
            optimizer.step()
    assert relative_error(scores(ScoreStore.open(tmp_path / "s")), torch.cat(rows)) < 1e-9
    assert have_equal_weights(traced, plain)


def frozen_as_loaded(folder: Path) -> Any:
    two().save_pretrained(folder)
    return peft.PeftModel.from_pretrained(tiny.llama(), folder).double()


def merged_at_first(folder: Path) -> Any:
    model = two()
    model.merge_adapter()
    return model


def off(folder: Path) -> Any:
    model = two()
    model.base_model.disable_adapter_layers()
    return model


REFUSALS: dict[str, tuple[Callable[[Path], Any], str, Callable[[Any], Any]]] = {
    "merged": (
        merged_at_first,
        r"merged into their base weights, \['default'\].*call unmerge_adapter",
        lambda model: model.unmerge_adapter(),
    ),
    "switched off": (
        off,
        r"switched off.*call enable_adapter_layers",
        lambda model: model.base_model.enable_adapter_layers(),
    ),
    "frozen": (
        frozen_as_loaded,
        r"All adapters are frozen.*is_trainable=True.*set_adapter",
        lambda model: model.set_adapter("default"),
    ),
    "unloaded": (
        lambda folder: two().merge_and_unload(),
        r"All parameters are frozen: set requires_grad.*merged and unloaded, nothing is left",
        lambda model: model.requires_grad_(True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_gets_no_gradient_is_refused_and_the_remedy_works(kind: str, tmp_path: Path) -> None:
    make, message, remedy = REFUSALS[kind]
    model = make(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        Training(model, batches(2)).traced(tmp_path / "refused")
    remedy(model)
    copied = copy.deepcopy(model)
    store = Training(model, batches(2)).traced(tmp_path / "s")
    assert relative_error(scores(store), Training(copied, batches(2)).by_hand()) < 1e-9


def test_merging_all_in_the_middle_is_refused(tmp_path: Path) -> None:
    def merge(model: Any, step: int) -> None:
        if step == 1:
            model.merge_adapter()

    with pytest.raises(ValueError, match="call unmerge_adapter"):
        Training(two(), batches(2), merge).traced(tmp_path / "s")
    assert ScoreStore.open(tmp_path / "s-incomplete").matrix("dot").any()


def test_parameters_in_the_same_memory_are_refused_and_the_remedy_works(tmp_path: Path) -> None:
    """PEFT ties adapters of an embedding and of its head by their memory: each step on one moves the other, too."""

    def tied(ensure: bool) -> Any:
        settings = {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "ensure_weight_tying": ensure}
        return adapted.adapted(tiny.llama(tie_word_embeddings=True), lora(**settings))

    with pytest.raises(ValueError, match=r"lora_embedding_A.*same memory as '.*lm_head.lora_B.*ensure_weight_tying"):
        Training(tied(True), batches(2)).traced(tmp_path / "refused")
    store = Training(tied(False), batches(2)).traced(tmp_path / "s")
    assert relative_error(scores(store), Training(tied(False), batches(2)).by_hand()) < 1e-9
