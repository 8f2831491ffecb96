"""Mixed precision, with tied weights, whose gradient has parts of two kinds and two dtypes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from ftrace.online import trace
from ftrace.scores import ScoreStore


class Tied(nn.Module):
    """An embedding that is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.head(self.body(self.table(batch["words"][:, :-1])).relu())
        return F.cross_entropy(logits.float().transpose(1, 2), batch["words"][:, 1:], reduction="none").sum(1)


def rows(count: int, key: str, seed: int) -> list[dict[str, Tensor | int]]:
    words = torch.randint(11, (count, 6), generator=torch.Generator().manual_seed(seed))
    return [{"words": own, key: index} for index, own in enumerate(words)]


@pytest.mark.parametrize("scores", [("dot",), ("dot", "cosine", "update")])
def test_tied_weights_in_mixed_precision(scores: tuple[str, ...], tmp_path: Path) -> None:
    model, examples, asked = Tied(), default_collate(rows(4, "example_id", 1)), rows(4, "query_id", 2)
    parameters = list(model.parameters())

    def gradients(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.example_losses(batch)
        of_each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        return torch.stack([torch.cat([grad.flatten() for grad in grads]) for grads in of_each])

    expected = 0.1 * gradients(examples) / 4 @ gradients(default_collate(asked)).T
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trace(
        model, optimizer, lambda model, batch: model.example_losses(batch).mean(), queries=asked,
        output_dir=tmp_path / "s", scores=scores, precision="bf16-mixed", ledger=False,
    ) as run:  # fmt: skip
        run.backward(run.loss(examples))
        optimizer.step()
    store = ScoreStore.open(tmp_path / "s")
    assert store.manifest["precision"] == "bf16-mixed"
    # autograd rounds the gradients of weights to 8 bits, and ours are formed in float32
    np.testing.assert_allclose(store.matrix("dot"), expected, atol=1e-2 * float(expected.abs().max()))
