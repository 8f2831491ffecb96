"""Which queries the finished model has learned: only those have something to trace."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from ftrace.models import FactLM


@torch.no_grad()
def find_learned_queries(model: FactLM, queries: DataLoader) -> list[int]:
    """Ids of the queries that the model answers right: greedily, in any surface of the answer.

    Args:
        model: The model at its last snapshot.
        queries: Batches with ``query_id`` and accepted answers.
    """
    model.eval()
    learned: list[int] = []
    for batch in queries:
        right = model.learned({name: tensor.to(model.device) for name, tensor in batch.items()})
        learned += batch["query_id"][right.cpu()].tolist()
    return learned
