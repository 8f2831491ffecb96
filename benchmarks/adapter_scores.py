"""Do scores of adapters say what scores of all weights say? Facts of which it is known which rows teach them.

    OMP_NUM_THREADS=1 python benchmarks/adapter_scores.py
    OMP_NUM_THREADS=1 python benchmarks/adapter_scores.py --seeds 5 --rank 2

A small Llama is pretrained on facts (subject, relation, value) in six wordings. Then it learns new facts in five
wordings among rows of known facts, once with all its weights and once with LoRA on all linear layers, on the same rows
in the same order; the sixth wording of each new fact is its query. Reported: how many queries were learned, how well
scores find the five rows that state a fact, and the rank correlation of two trainings' scores over all rows, the mean
over queries, with 95% intervals by resampling facts. Two orders of the same rows say how far scores of one way repeat.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from ftrace.online import trace
from ftrace.scores import ScoreStore
from ftrace.scores.correlation import rank_correlation

SUBJECTS, RELATIONS, VALUES, WORDINGS = 60, 8, 40, 6
KINDS = ("dot", "update", "cosine", "learning")


def state(facts: Tensor, wording: int) -> Tensor:
    """State facts, ``[n, 3]`` (subject, relation, value), in one wording: a word of its own, an order, a filler."""
    subject = facts[:, 0]
    relation = SUBJECTS + facts[:, 1]
    value = SUBJECTS + RELATIONS + facts[:, 2]
    first = SUBJECTS + RELATIONS + VALUES
    words = torch.full_like(subject, first + wording)
    filler = torch.full_like(subject, first + WORDINGS + wording // 2)
    middle = (subject, relation) if wording % 2 else (relation, subject)
    return torch.stack([words, *middle, filler, value], 1)


def draw_facts(seed: int, count: int, new: int) -> tuple[Tensor, Tensor]:
    """Draw facts about different pairs of a subject and a relation: known ones and new ones."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(SUBJECTS * RELATIONS, generator=generator)[: count + new]
    values = torch.randint(0, VALUES, (count + new,), generator=generator)
    facts = torch.stack([pairs // RELATIONS, pairs % RELATIONS, values], 1)
    return facts[:count], facts[count:]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each row's last token, the value."""
    logits = model(input_ids=batch["input_ids"][:, :-1]).logits[:, -1]
    return F.cross_entropy(logits, batch["input_ids"][:, -1], reduction="none")


def mean_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Its mean."""
    return losses(model, batch).mean()


def is_right(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Whether the value is the likeliest token."""
    return model(input_ids=batch["input_ids"][:, :-1]).logits[:, -1].argmax(1) == batch["input_ids"][:, -1]


def pretrain(known: Tensor, steps: int, seed: int) -> LlamaForCausalLM:
    """Pretrain a model on the known facts in all wordings."""
    torch.manual_seed(seed)
    vocabulary = SUBJECTS + RELATIONS + VALUES + WORDINGS + WORDINGS // 2
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=8, use_cache=False,
        )
    )  # fmt: skip
    rows = torch.cat([state(known, wording) for wording in range(WORDINGS)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = {"input_ids": rows[torch.randint(0, len(rows), (64,))]}
        optimizer.zero_grad()
        mean_loss(model, batch).backward()
        optimizer.step()
    return model


def fine_tune(
    base: LlamaForCausalLM, kind: str, rows: Tensor, queries: Tensor, *, order: int, rank: int, epochs: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Train on rows, traced.

    Args:
        base: The pretrained model, which is copied.
        kind: "all" weights, or "lora".
        rows: ``[N, T]``.
        queries: ``[Q, T]``.
        order: Seed of the rows' order, and of the adapters' start.
        rank: Of the adapters.
        epochs: Passes over the rows.

    Returns:
        By kind of score, ``[N, Q]``; and whether each query is answered right in the end, ``[Q]``.
    """
    torch.manual_seed(order)
    model: Any = copy.deepcopy(base)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4 if kind == "all" else 2e-3)
    examples = [{"input_ids": row, "example_id": index} for index, row in enumerate(rows)]
    asked = [{"input_ids": row, "query_id": index} for index, row in enumerate(queries)]
    generator = torch.Generator().manual_seed(order)
    loader: Any = DataLoader(examples, 16, shuffle=True, generator=generator)  # type: ignore[arg-type]
    model.train()
    with tempfile.TemporaryDirectory() as folder:
        with trace(
            model, optimizer, mean_loss, queries=DataLoader(asked, len(asked)), query_losses=losses,  # type: ignore[arg-type]
            output_dir=Path(folder) / "s", scores=KINDS, projection_side=16, refresh_every_n_steps=5,
        ) as run:  # fmt: skip
            for _ in range(epochs):
                for batch in loader:
                    optimizer.zero_grad()
                    run.backward(run.loss(batch))
                    optimizer.step()
        store = ScoreStore.open(Path(folder) / "s")
        scores = {name: store.matrix(name).copy() for name in KINDS}
    model.eval()
    with torch.no_grad():
        return scores, is_right(model, {"input_ids": queries}).numpy()


def precision(scores: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Share of a query's own rows among as many of the strongest, ``[Q]``."""
    count = int(states.sum(0)[0])
    strongest = np.argsort(-scores, axis=0)[:count]
    found: np.ndarray = np.take_along_axis(states, strongest, 0).mean(0)
    return found


def correlations(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's correlation of two trainings' scores of all rows, ``[Q]``."""
    return np.array([rank_correlation(mine, theirs) for mine, theirs in zip(scores.T, others.T, strict=True)])


def interval(values: np.ndarray) -> str:
    """The mean, and its 95% interval by resampling queries: one for each fact."""
    generator = np.random.default_rng(0)
    means = [generator.choice(values, len(values)).mean() for _ in range(2000)]
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def main(
    seeds: int = 3, rank: int = 8, facts: int = 24, others: int = 200, epochs: int = 12, steps: int = 1500
) -> None:
    """Measure and print a table.

    Args:
        seeds: Pretrained models, with facts of their own.
        rank: Of the adapters.
        facts: New facts, each with a query and five rows.
        others: Rows of known facts among them.
        epochs: Passes over the rows in fine-tuning.
        steps: Steps of pretraining.
    """
    of_pair: dict[tuple[str, str], list[np.ndarray]] = {}
    learned: dict[str, list[np.ndarray]] = {}
    for seed in range(seeds):
        known, new = draw_facts(seed, 300, facts)
        base = pretrain(known, steps, seed)
        taught = torch.cat([state(new, wording) for wording in range(1, WORDINGS)])
        generator = torch.Generator().manual_seed(seed)
        recalled = known[torch.randint(0, len(known), (others,), generator=generator)]
        rows = torch.cat([taught, state(recalled, 2)])
        states = np.concatenate([np.tile(np.eye(facts), (WORDINGS - 1, 1)), np.zeros((others, facts))])
        trainings = {
            f"{kind} {order}": fine_tune(
                base, kind, rows, state(new, 0), order=100 * seed + order, rank=rank, epochs=epochs
            )
            for kind in ("all", "lora")
            for order in (0, 1)
        }
        for name, (_, right) in trainings.items():
            learned.setdefault(name, []).append(right)
        for score in KINDS:
            scores = {name: of_kind[score] for name, (of_kind, _) in trainings.items()}
            measured = {
                "all weights find": precision(scores["all 0"], states),
                "LoRA finds": precision(scores["lora 0"], states),
                "LoRA ~ all weights": correlations(scores["lora 0"], scores["all 0"]),
                "all weights ~ again, another order": correlations(scores["all 1"], scores["all 0"]),
                "LoRA ~ again, another order and start": correlations(scores["lora 1"], scores["lora 0"]),
            }
            for what, values in measured.items():
                of_pair.setdefault((score, what), []).append(values)
    columns = list(dict.fromkeys(what for _, what in of_pair))
    table = Table("score", *columns)
    for score in KINDS:
        table.add_row(score, *(interval(np.concatenate(of_pair[score, what])) for what in columns))
    console = Console(width=170)
    console.print(table)
    for name, of_seeds in learned.items():
        right = np.concatenate(of_seeds)
        console.print(f"{name}: {right.sum()} of {len(right)} queries learned")
    console.print(f"{seeds} pretrained models, rank {rank}, {5 * facts + others} rows, {facts} queries each")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
