"""Adapters of PEFT: contributions and single examples against autograd, scores against a replay, weights bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from helpers import adapted, tiny
from helpers.adapted import COUNT, Training, batches, have_equal_weights, lora, losses, scores, two
from helpers.held_rehearsal import hold
from helpers.oracle import relative_error
from helpers.rehearsal_step import Step

LAYERS = ["q_proj", "v_proj", "down_proj"]


def llama(tied: bool = False) -> Any:
    return tiny.llama(tie_word_embeddings=tied)


def initialised(how: str) -> Any:
    """PEFT factors weights in float32; the principal parts of PiSSA are taken out of the base weights."""
    return adapted.adapted(tiny.llama(torch.float32), lora(init_lora_weights=how), jitter=0)


def other(kind: Any, **settings: Any) -> Callable[[], Any]:
    return lambda: adapted.adapted(llama(), kind(task_type="CAUSAL_LM", **settings))


def of_llama(tied: bool = False, **settings: Any) -> Callable[[], Any]:
    return lambda: adapted.adapted(llama(tied), lora(**settings))


def of_gpt2(**settings: Any) -> Callable[[], Any]:
    return lambda: adapted.adapted(tiny.gpt2(), lora(fan_in_fan_out=True, **settings))


def one_frozen() -> Any:
    model = two(both=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".b." in name)
    return model


KINDS: dict[str, Callable[[], Any]] = {
    "LoRA, as it begins": lambda: adapted.adapted(llama(), lora(target_modules=LAYERS), jitter=0),
    "LoRA on all linear layers": of_llama(target_modules="all-linear"),
    "rsLoRA": of_llama(use_rslora=True, r=4),
    "ranks and alphas by layer": of_llama(
        target_modules=LAYERS, rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 3}
    ),
    "LoRA with biases": of_llama(lora_bias=True),
    "LoRA, dropout": of_llama(target_modules=LAYERS, lora_dropout=0.3),
    "DoRA": of_llama(target_modules=LAYERS, use_dora=True),
    "DoRA, dropout": of_llama(use_dora=True, lora_dropout=0.3),
    "DoRA, embedding": of_llama(use_dora=True, target_modules=["embed_tokens"]),
    "PiSSA": lambda: initialised("pissa"),
    "PiSSA, fast": lambda: initialised("pissa_niter_4"),
    "OLoRA": lambda: initialised("olora"),
    "Conv1D": of_gpt2(target_modules=["c_attn", "c_fc", "c_proj"]),
    "Conv1D, DoRA": of_gpt2(target_modules=["c_attn", "c_fc"], use_dora=True),
    "Conv1D, embedding and tied head": of_gpt2(target_modules=["c_attn", "wte", "lm_head"]),
    "embedding and head": of_llama(target_modules=["embed_tokens", "lm_head"]),
    "embedding and tied head": of_llama(tied=True, target_modules=["embed_tokens", "lm_head"]),
    "tied embedding": of_llama(tied=True, target_modules=["embed_tokens"], lora_dropout=0.3),
    "tied head": of_llama(tied=True, target_modules=["lm_head"]),
    "saved modules": of_llama(modules_to_save=["embed_tokens", "lm_head", "norm"]),
    "saved modules, tied": of_llama(tied=True, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "single tokens": of_llama(trainable_token_indices=[1, 2, 3]),
    "single tokens, tied": of_llama(tied=True, trainable_token_indices=[1, 2, 3]),
    "experts": lambda: adapted.adapted(
        tiny.mixtral(), lora(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    ),
    "two adapters, both active": lambda: two(both=True),
    "two adapters, one active": two,
    "two adapters, one frozen": one_frozen,
    "IA3": other(peft.IA3Config, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "AdaLoRA": other(peft.AdaLoraConfig, init_r=3, target_r=2, total_step=100, target_modules=["q_proj"]),
    "LoKr": other(peft.LoKrConfig, r=2, target_modules=["q_proj"]),
    "BOFT": other(peft.BOFTConfig, boft_block_size=4, target_modules=["q_proj"]),
    "norms": other(peft.LNTuningConfig, target_modules=["input_layernorm"]),
    "prompt tuning": other(peft.PromptTuningConfig, num_virtual_tokens=3),
    "prefix tuning": other(peft.PrefixTuningConfig, num_virtual_tokens=3),
    "prefix tuning, projected": other(
        peft.PrefixTuningConfig, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=6
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "experts"]
)  # read off a module around them, in runs
def test_contributions_are_those_of_autograd(kind: str) -> None:
    """They sum to the gradient, and each is that of its example alone, for every parameter."""
    model, [batch] = KINDS[kind](), batches(1)
    model.train()

    def alone(example: int) -> torch.Tensor:
        torch.manual_seed(5)  # the step's own
        return losses(model, batch)[example] / COUNT

    hold(model, Step(lambda given: [losses(model, given).mean()], batch), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_a_replay_and_weights_as_without(kind: str, tmp_path: Path) -> None:
    model = KINDS[kind]()
    data, plain, traced = batches(3), copy.deepcopy(model), copy.deepcopy(model)
    expected = Training(model, data).by_hand()
    store = Training(traced, data).traced(tmp_path / "s")
    assert relative_error(scores(store), expected) < 1e-9
    assert have_equal_weights(traced, Training(plain, data).plain())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": LAYERS, "lora_dropout": 0.3},
        {"use_dora": True},
        {"target_modules": ["embed_tokens"], "modules_to_save": ["lm_head", "norm"]},
    ],
    ids=["LoRA", "DoRA", "embedding"],
)
def test_gradient_checkpointing_changes_nothing(settings: dict[str, Any], reentrant: bool, tmp_path: Path) -> None:
    def saving() -> Any:
        model = of_llama(**settings)()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()  # without which PEFT's reentrant checkpoints get no gradient
        return model

    data = batches(3)
    expected = Training(of_llama(**settings)(), data).by_hand()
    traced = saving()
    store = Training(traced, data).traced(tmp_path / "s")
    assert relative_error(scores(store), expected) < 1e-9
    assert have_equal_weights(traced, Training(saving(), data).plain())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_in_float32_on_weights_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """As PEFT makes them by default: gradients are rounded in passes, but not in adapters' sums."""

    def make() -> Any:
        model = peft.get_peft_model(tiny.llama(torch.float32).to(dtype), lora(target_modules=LAYERS))
        torch.manual_seed(9)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    assert parameter.dtype == torch.float32
                    parameter += 0.2 * torch.randn_like(parameter)
        return model

    data, model = batches(3), make()
    precision = "bf16-true" if dtype == torch.bfloat16 else "16-true"
    store = Training(model, data).traced(tmp_path / "s", precision=precision, scores=("dot", "update"))
    assert relative_error(scores(store), Training(make(), data).by_hand()) < 0.05  # of bfloat16's 8 bits in two layers
    assert store.manifest["ledger"]["worst_imbalance"] < 1e-4
    assert have_equal_weights(model, Training(make(), data).plain())


def test_at_the_first_step_only_b_has_a_gradient(tmp_path: Path) -> None:
    """A's gradient is B^T times what comes from above, and B begins at 0."""
    data = batches(1)
    stores = {}
    for which in ("lora_A", "lora_B"):
        model = KINDS["LoRA, as it begins"]()
        stores[which] = Training(model, data).traced(
            tmp_path / which, parameters=(f"*{which}*",), ledger=False, self_check=False
        )
    whole = Training(KINDS["LoRA, as it begins"](), data).traced(tmp_path / "whole")
    assert not scores(stores["lora_A"]).any()
    assert torch.equal(scores(stores["lora_B"]), scores(whole))
    assert scores(whole).any()


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_multiplies_the_gradients(rslora: bool, tmp_path: Path) -> None:
    """Where B is 0, B's gradient has the scale once, so scores have its square: alpha / r, or alpha / root of r."""
    data = batches(1)
    found = []
    for alpha, rank in ((4, 4), (12, 4)):
        model = adapted.adapted(llama(), lora(r=rank, lora_alpha=alpha, use_rslora=rslora), jitter=0)
        found.append(scores(Training(model, data).traced(tmp_path / str(alpha))))
    torch.testing.assert_close(found[1], 9 * found[0], rtol=1e-9, atol=0)
