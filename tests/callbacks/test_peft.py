"""Adapters of PEFT, as they come: scores and trained weights against plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import own_parts, tiny
from helpers.oracle import relative_error
from helpers.own_parts import Own, by_hand, found, loader, trainer

TOKENS, COUNT = 6, 4
Kind = Callable[[], Any]


def lora(**settings: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})


KINDS: dict[str, tuple[Kind, Kind]] = {
    "LoRA on experts' weights": (
        tiny.mixtral,
        lambda: lora(target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ),
    "DoRA": (tiny.llama, lambda: lora(use_dora=True)),
    "embedding and tied head": (
        lambda: tiny.llama(tie_word_embeddings=True),
        lambda: lora(target_modules=["embed_tokens", "lm_head"]),
    ),
    "saved modules": (tiny.llama, lambda: lora(modules_to_save=["embed_tokens", "lm_head"])),
    "single tokens": (tiny.llama, lambda: lora(trainable_token_indices=[1, 2, 3])),
    "all biases": (tiny.llama, lambda: lora(bias="all")),
    "IA3": (
        tiny.llama,
        lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
    ),
    "VeRA": (tiny.llama, lambda: peft.VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")),
    "LoHa": (tiny.llama, lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")),
    "OFT": (tiny.llama, lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=["q_proj"])),
    "prompt tuning": (tiny.llama, lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
    "prefix tuning": (tiny.llama, lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")),
    "P-tuning": (
        tiny.llama,
        lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
    ),
}


def losses(module: Any, batch: Any) -> Tensor:
    logits = module.net(input_ids=batch["input_ids"]).logits[:, -TOKENS:-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)


def batches(count: int, key: str, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(2, tiny.VOCABULARY, (COUNT, TOKENS), generator=generator) for _ in range(count)]
    return [{"input_ids": own, "labels": own, key: torch.arange(COUNT) + COUNT * i} for i, own in enumerate(tokens)]


def made(kind: str) -> Own:
    base, config = KINDS[kind]
    torch.manual_seed(0)
    net = peft.get_peft_model(base(), config())
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    return Own(
        lambda module, batch: losses(module, batch).mean(),
        lambda module: torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=own_parts.RATE),
        net=net,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_autograd_and_weights_are_as_without(kind: str, tmp_path: Path) -> None:
    module, data, asked = made(kind), batches(2, "example_id", 1), batches(1, "query_id", 2)
    expected = by_hand(
        module,
        data,
        lambda module, batch, i: losses(module, batch)[i] / COUNT,
        asked,
        losses,
        total=lambda module, batch: losses(module, batch).mean(),
    )
    plain = copy.deepcopy(module)
    torch.manual_seed(0)
    trainer(tmp_path).fit(plain, loader(data))
    store = own_parts.traced(module, data, tmp_path, asked, None)  # the ready-made loss
    assert relative_error(found(store), expected) < 1e-7  # some take norms in float32
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, module.state_dict()[name])
