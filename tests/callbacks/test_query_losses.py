"""Ready-made losses of queries: what they are of each kind of model, and what they say where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from ftrace.online.queries.query_losses import (
    find_answer_lengths,
    find_query_losses,
    huggingface_losses,
    module_example_losses,
)
from helpers import own_parts, tiny

VIRTUAL = 3


class Module(pl.LightningModule):
    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return huggingface_losses(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)


def batch(key: str = "query_id", seed: int = 0) -> dict[str, Any]:
    """Padded on the left, with positions that begin at the first real token, and a column that no model takes."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, tiny.VOCABULARY, (3, 6), generator=generator)
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    labels = torch.where(mask == 1, tokens, -100)
    labels[1, :3] = -100
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "labels": labels,
        "text_length": mask.sum(1),
        key: torch.arange(3),
    }


def right(logits: Tensor, labels: Tensor, shifted: bool = True) -> Tensor:
    """Row by row, token by token."""
    losses = []
    for row, wanted in zip(logits, labels, strict=True):
        places = [(t - 1 if shifted else t, int(label)) for t, label in enumerate(wanted) if label != -100]
        losses.append(-sum(row[t].log_softmax(0)[label] for t, label in places if t >= 0))  # type: ignore[arg-type]
    return torch.stack(losses)  # type: ignore[arg-type]


class Passing(nn.Module):
    """A wrapper that hands on what it doesn't name itself."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def can_generate(self) -> bool:
        return True

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        return self.inner(input_ids, **kwargs)


class Choosy(Passing):
    """A wrapper that takes two columns, and no others."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:  # type: ignore[override]
        return self.inner(input_ids, attention_mask=attention_mask)


def jittered(model: Any) -> Any:
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.double().eval()


def adapted(**settings: Any) -> Any:
    kind = settings.pop("kind", peft.LoraConfig)
    return jittered(peft.get_peft_model(tiny.llama(), kind(task_type="CAUSAL_LM", **settings)))


def lora() -> Any:
    return adapted(r=2, target_modules=["q_proj"])


def untyped_lora() -> Any:
    """PEFT's plain wrapper, whose forward names nothing."""
    return jittered(peft.get_peft_model(tiny.llama(), peft.LoraConfig(r=2, target_modules=["q_proj"])))


MODELS: dict[str, Callable[[], Any]] = {
    "decoder": lambda: tiny.llama().eval(),
    "LoRA": lora,
    "LoRA without a task": untyped_lora,
    "a wrapper that hands on": lambda: Passing(tiny.llama().eval()),
    "a wrapper around LoRA": lambda: Passing(lora()),
    "compiled": lambda: torch.compile(tiny.llama().eval(), backend="eager"),
    "compiled LoRA": lambda: torch.compile(untyped_lora(), backend="eager"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_of_decoders_with_every_column_that_they_take(make: Callable[[], Any]) -> None:
    module, asked = Module(model=make()), batch()
    assert find_query_losses(module) is huggingface_losses
    plain: Any = getattr(module.model, "_orig_mod", module.model)
    columns = {name: asked[name] for name in ("input_ids", "attention_mask", "position_ids")}
    expected = right(plain(**columns).logits, asked["labels"])
    torch.testing.assert_close(huggingface_losses(module, asked), expected, rtol=1e-12, atol=1e-12)
    without = right(plain(input_ids=asked["input_ids"]).logits, asked["labels"])
    assert not torch.allclose(expected, without, rtol=1e-3)


def test_of_a_wrapper_that_takes_some_columns_only() -> None:
    module, asked = Module(model=Choosy(tiny.llama().eval())), batch()
    logits = module.model.inner(asked["input_ids"], attention_mask=asked["attention_mask"]).logits
    torch.testing.assert_close(huggingface_losses(module, asked), right(logits, asked["labels"]))


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PromptEncoderConfig, peft.PrefixTuningConfig])
def test_virtual_tokens_are_left_out(kind: Any) -> None:
    settings = {"encoder_hidden_size": 8} if kind is peft.PromptEncoderConfig else {}
    module = Module(model=adapted(kind=kind, num_virtual_tokens=VIRTUAL, **settings))
    asked = {name: own for name, own in batch().items() if name != "position_ids"}  # PEFT makes its own
    logits = module.model(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"]).logits
    expected = right(logits[:, -6:], asked["labels"])
    torch.testing.assert_close(huggingface_losses(module, asked), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "given_losses", "expected"),
    [
        ("own", False, [4, 1, 2]),
        ("own", True, None),  # their sums may be of anything
        ("own without lengths", False, None),
        ("hugging face", False, [2, 1, 3]),
    ],
)
def test_lengths_of_answers(make: str, given_losses: bool, expected: list[int] | None) -> None:
    module = Module(model=tiny.llama().eval())
    if make != "hugging face":
        module.example_losses = lambda batch: torch.zeros(3)
    if make == "own":
        module.answer_lengths = lambda batch: torch.tensor([4, 1, 2])
    losses: Any = (lambda module, batch: torch.zeros(3)) if given_losses else find_query_losses(module)
    lengths = find_answer_lengths(module, losses)
    labels = torch.tensor([[-100, 5, 7, 1], [-100, -100, -100, 1], [9, 7, 6, 8]])
    found = None if lengths is None else lengths(module, {"labels": labels}).tolist()
    assert found == expected


@pytest.mark.parametrize("end", [1, [1, 2], None])
def test_the_end_of_the_sequence_is_left_out_unless_it_is_all_there_is(end: Any) -> None:
    module = Module(model=tiny.llama().eval())
    module.model.config.eos_token_id, module.model.generation_config.eos_token_id = end, None
    labels = torch.tensor([[-100, 5, 1, 1], [-100, -100, 7, 2], [-100, -100, 1, -100], [-100, 1, 6, 8]])
    counted = labels.clone()
    if end is not None:
        counted[0, 3] = -100
    if isinstance(end, list):
        counted[1, 3] = -100
    asked = {"input_ids": labels.clamp(min=3), "labels": labels}
    expected = right(module.model(input_ids=asked["input_ids"]).logits, counted)
    torch.testing.assert_close(huggingface_losses(module, asked), expected, rtol=1e-12, atol=1e-12)


def test_of_encoder_decoders() -> None:
    asked = {**batch(), "labels": torch.tensor([[4, 5, 1], [7, 1, -100], [3, 3, 1]])}
    module = Module(model=tiny.t5().eval())
    model: Any = module.model
    logits = model(
        input_ids=asked["input_ids"],
        attention_mask=asked["attention_mask"],
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(asked["labels"]),
    ).logits
    without_ends = torch.tensor([[4, 5, -100], [7, -100, -100], [3, 3, -100]])
    expected = right(logits, without_ends, shifted=False)
    torch.testing.assert_close(huggingface_losses(module, asked), expected, rtol=1e-12, atol=1e-12)


def test_the_modules_own_come_first() -> None:
    module = Module(model=tiny.llama())
    module.example_losses = lambda batch: torch.zeros(3)
    assert find_query_losses(module) is module_example_losses


class Hides(nn.Module):
    """A model that keeps a language model to itself: what it makes of a batch is its own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.llama()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.inner(tokens).logits


def masked() -> nn.Module:
    return BertForMaskedLM(
        BertConfig(vocab_size=19, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )


@pytest.mark.parametrize(
    ("models", "found"),
    [
        ({"net": own_parts.mlp()}, "found none"),
        ({"model": Hides()}, "found none"),
        ({"model": masked()}, "found none"),
        ({"teacher": tiny.llama(), "student": tiny.llama()}, r"found 2 Hugging Face .*'teacher', 'student'"),
    ],
    ids=["no language model", "a hidden one", "a masked one", "two"],
)
def test_modules_without_a_ready_made_loss(models: dict[str, nn.Module], found: str) -> None:
    with pytest.raises(ValueError, match=rf"don't know the loss of a query.*{found}.*Pass query_losses=\(module"):
        find_query_losses(Module(**models))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda asked: {n: own for n, own in asked.items() if n != "labels"}, r"found keys \['input_ids', "),
        (lambda asked: {**asked, "labels": asked["labels"][:, 0]}, r"found shape \(3,\) under it"),
        (lambda asked: {**asked, "labels": ["a", "b", "c"]}, "found a list under it"),
    ],
    ids=["none", "one a row", "texts"],
)
def test_batches_without_labels(change: Any, message: str, tmp_path: Path) -> None:
    """The message comes when training starts, and its remedy works."""
    data, asked = [batch("example_id")], [change(batch())]
    with pytest.raises(ValueError, match=rf'expects token ids "labels", \[B, T\].*{message}.*pass query_losses='):
        own_parts.traced(Module(model=tiny.llama()), data, tmp_path, asked, None)

    def losses(module: Any, batch: Any) -> Tensor:
        logits = module.model(batch["input_ids"]).logits[:, -1]
        return F.cross_entropy(logits, batch["input_ids"][:, -1], reduction="none")

    store = own_parts.traced(Module(model=tiny.llama()), data, tmp_path / "again", asked, losses)
    assert store.matrix("dot").any()
