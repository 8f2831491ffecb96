"""Trainers of transformers and TRL on a random two-layer Llama, and what plain autograd says of their examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from ftrace.hf import OnlineTracInCallback
from helpers import chat_tokenizers

KINDS = ("trainer", "sft", "dpo", "grpo")
PLACES = ("Velland", "Karmora", "Quenby", "Marrow", "Ostrel")
ROWS = 10  # in batches of two: five batches, so that windows of three leave an uneven last one


def model_folder(folder: Path) -> str:
    """Save the model and its tokenizer, once for a test."""
    return chat_tokenizers.save_model(folder / "model")


def make_model(folder: str, dtype: torch.dtype, *, lora: bool = False) -> nn.Module:
    """Load the model, the same at each call."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if not lora:
        return model
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return adapted.to(dtype)


def make_trainer(
    kind: str,
    folder: str,
    output_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    lora: bool = False,
    evaluates: bool = False,
    **options: Any,
) -> Any:
    """Make a trainer, about to train for two epochs; TRL's fused head computes in float32 in any case."""
    dtype = dtype or (torch.float64 if kind == "trainer" else torch.float32)
    model, tokenizer = make_model(folder, dtype, lora=lora), AutoTokenizer.from_pretrained(folder)
    settings: dict[str, Any] = {
        "output_dir": str(output_dir), "per_device_train_batch_size": 2, "num_train_epochs": 2, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "bf16": False, "learning_rate": 1e-2, "disable_tqdm": True,
        "logging_strategy": "no", "max_grad_norm": 0.5, "warmup_steps": 1, **options,
    }  # fmt: skip
    if kind in ("sft", "dpo", "grpo"):
        settings["model_init_kwargs"] = None
    if kind == "trainer":
        rows = _tokens(tokenizer)
        return Trainer(
            model, TrainingArguments(**settings), train_dataset=rows, eval_dataset=rows if evaluates else None
        )
    if kind == "sft":
        rows = [{"messages": [_said("user", asked), _said("assistant", told)], "example_id": id_}
                for id_, asked, told in _facts()]  # fmt: skip
        config: Any = SFTConfig(**{"max_length": 64, **settings})
        of_sft = datasets.Dataset.from_list(rows)
        return SFTTrainer(
            model, config, train_dataset=of_sft, eval_dataset=of_sft if evaluates else None, processing_class=tokenizer
        )
    if kind == "dpo":
        rows = [{"prompt": asked, "chosen": f" {told}", "rejected": f" Nowhere, {id_}.", "example_id": id_}
                for id_, asked, told in _facts()]  # fmt: skip
        config = DPOConfig(**{"beta": 0.5, **settings})
        return DPOTrainer(
            model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
        )
    rows = [{"prompt": asked, "example_id": id_} for id_, asked, _ in _facts()][:5]
    config = GRPOConfig(**{"num_generations": 2, "max_completion_length": 5, **settings})
    return GRPOTrainer(
        model, reward_funcs=_variety, args=config, train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip


def _variety(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(set(completion))) for completion in completions]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _facts() -> list[tuple[int, str, str]]:
    """Return ids, questions and answers; the length of a question depends on its id."""
    return [
        (100 + i, f"Where does {PLACES[i % 5]} lie{' now' * (i % 3)}?", f"In {PLACES[(i * i + 1) % 5]}.")
        for i in range(ROWS)
    ]


def _tokens(tokenizer: Any) -> datasets.Dataset:
    """Return rows of one length, for the trainer's own collator."""
    made = []
    for id_, asked, told in _facts():
        ids = tokenizer(f"{told} {asked} {told}").input_ids[:12]
        made.append({"input_ids": ids, "attention_mask": [1] * 12, "labels": [-100, -100, *ids[2:]], "example_id": id_})
    assert {len(row["input_ids"]) for row in made} == {12}
    return datasets.Dataset.from_list(made)


def make_queries(folder: str) -> list[dict[str, Any]]:
    """Return three queries of ten tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [f"{place} lies in Velland, they say." for place in PLACES[:3]]
    ids = [torch.tensor(tokenizer(text).input_ids[:10]) for text in texts]
    return [{"input_ids": row, "query_id": i} for i, row in enumerate(ids)]


def query_losses(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the summed loss of each query."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)


@dataclass
class Batch:
    """A batch that was trained on, and the weights and settings of then."""

    inputs: dict[str, Any]
    options: dict[str, Any]
    weights: dict[str, Tensor]
    rate: float
    step: int
    batches_of_step: int


@dataclass
class Recorder:
    """The batches of a traced training, recorded right before each is rehearsed."""

    trainer: Any
    callback: OnlineTracInCallback
    batches: list[Batch] = field(default_factory=list)

    def __post_init__(self) -> None:
        begins = self.callback._session.batch_begins

        def batch_begins(inputs: Any, index: int) -> None:
            loop = self.callback._loop
            assert loop is not None
            self.batches.append(
                Batch(
                    {key: value.clone() if isinstance(value, Tensor) else value for key, value in inputs.items()},
                    dict(loop.options),
                    {name: weight.detach().clone() for name, weight in loop.module.named_parameters()},
                    loop.optimizers[0].param_groups[0]["lr"],
                    loop.step,
                    self.trainer.current_gradient_accumulation_steps,
                )
            )
            begins(inputs, index)

        self.callback._session.batch_begins = batch_begins  # type: ignore[method-assign]


def expected_scores(recorder: Recorder, kind: str, queries: list[dict[str, Any]]) -> dict[Any, np.ndarray]:
    """Compute ``dot`` by plain autograd, one example at a time, of the trainer's own loss: by id, ``[Q]``."""
    trainer = recorder.trainer
    model = trainer.model.train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    of_queries = {key: torch.stack([row[key] for row in queries]) for key in ("input_ids",)}
    scores: dict[Any, np.ndarray] = {}
    steps = sorted({batch.step for batch in recorder.batches})
    for step in steps:
        batches = [batch for batch in recorder.batches if batch.step == step]
        _load(parameters, batches[0].weights)
        model.eval()
        losses = query_losses(model, of_queries)
        asked = [_flat(torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True),
                       parameters) for loss in losses]  # fmt: skip
        model.train()
        given: list[tuple[Any, Tensor]] = []
        for batch in batches:
            trainer.current_gradient_accumulation_steps = batch.batches_of_step
            given += [
                (id_, _flat(gradient, parameters)) for id_, gradient in _contributions(trainer, kind, batch, parameters)
            ]
        norm = torch.stack([gradient for _, gradient in given]).sum(0).norm()
        clip = min(1.0, float(trainer.args.max_grad_norm / (norm + 1e-6)))
        for id_, gradient in given:
            products = torch.stack([gradient @ query for query in asked]).numpy()
            scores[id_] = scores.get(id_, 0) + batches[0].rate * clip * products
    return scores


def _contributions(trainer: Any, kind: str, batch: Batch, parameters: dict[str, Any]) -> list[tuple[Any, Any]]:
    ids = batch.inputs["example_id"]
    names = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    made = []
    for id_ in dict.fromkeys(names):
        rows = [place for place, name in enumerate(names) if name == id_]
        inputs = {
            key: value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == len(names) else value
            for key, value in batch.inputs.items()
            if key != "example_id"
        }
        loss = type(trainer).compute_loss(trainer, trainer.model, inputs, **batch.options)
        # DPO's loss is a mean over pairs, and GRPO's one of sums over its own number of items.
        weight = {"dpo": len(names) // 2 * batch.batches_of_step}.get(kind, 1)
        made.append((id_, torch.autograd.grad(loss / weight, list(parameters.values()), allow_unused=True)))
    return made


def _load(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def _flat(gradients: Any, parameters: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([
        (torch.zeros_like(p) if gradient is None else gradient).flatten()
        for gradient, p in zip(gradients, parameters.values(), strict=True)
    ])  # fmt: skip
