"""Small modules with training steps of their own, a way to train them, and what plain autograd says of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore

RATE = 0.1
WIDTH, CLASSES = 4, 3

Losses = Callable[[Any, Any], Tensor]


class Own(pl.LightningModule):
    """Modules by name, and a training step given as a function; plain SGD.

    Args:
        step: ``(module, batch) -> loss``.
        optimize: ``(module) -> what configure_optimizers returns``; default SGD.
        **parts: Modules and parameters.
    """

    def __init__(self, step: Losses, optimize: Callable[[Any], Any] | None = None, **parts: Any) -> None:
        super().__init__()
        self.step, self.optimize = step, optimize
        for name, part in parts.items():
            setattr(self, name, part)
        self.double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self, batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=RATE) if self.optimize is None else self.optimize(self)


def mlp(seed: int = 0) -> nn.Sequential:
    """``[B, WIDTH] -> [B, CLASSES]``."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def losses(module: Any, batch: Any) -> Tensor:
    """``[B]``, of ``module.net``."""
    return nn.functional.cross_entropy(module.net(batch["x"]), batch["y"], reduction="none")


def mean_loss(module: Any, batch: Any) -> Tensor:
    return losses(module, batch).mean()


def share(module: Any, batch: Any, i: int) -> Tensor:
    """Example i's part of :func:`mean_loss`."""
    return losses(module, batch)[i] / len(batch["y"])


def batches(count: int = 3, size: int = 4, key: str = "example_id", seed: int = 1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "x": torch.randn(size, WIDTH, generator=generator).double(),
            "y": torch.randint(CLASSES, (size,), generator=generator),
            key: torch.arange(size) + size * index,
        }
        for index in range(count)
    ]


def gaussian(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


QUERIES = batches(1, 3, "query_id", seed=2)


def loader(made: Sequence[Any]) -> DataLoader:
    """Batches as they are."""
    return DataLoader(list(made), batch_size=None, collate_fn=_as_it_is)  # type: ignore[arg-type]


def _as_it_is(batch: Any) -> Any:
    return batch


def trainer(folder: Path, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(**{**defaults, **settings}, callbacks=list(callbacks))


def traced(
    module: Any, made: Any, folder: Path, queries: Any = QUERIES, query_losses: Losses | None = losses,
    settings: dict[str, Any] | None = None, **online: Any,
) -> ScoreStore:  # fmt: skip
    """Train with the callback; the module is trained afterwards."""
    torch.manual_seed(0)
    asked = loader(queries) if isinstance(queries, list) else queries
    callback = OnlineTracIn(asked, folder / "online", query_losses, **{"refresh_every_n_steps": 1, **online})
    data = loader(made) if isinstance(made, list) else made
    trainer(folder, [callback], **(settings or {})).fit(module, data)
    return ScoreStore.open(folder / "online")


def found(store: ScoreStore, kind: str = "dot") -> Tensor:
    """``[N, Q]``, in the order of the ids."""
    return torch.from_numpy(store.matrix(kind).copy()).double()


def per_example(module: nn.Module, scalars: Sequence[Tensor]) -> Tensor:
    """Gradients, ``[n, all parameters]``."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    rows = []
    for scalar in scalars:
        grads = torch.autograd.grad(scalar, wanted, retain_graph=True, allow_unused=True)
        given = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, grads, strict=True)]
        rows.append(torch.cat([grad.flatten() for grad in given]))
    return torch.stack(rows)


def by_hand(
    module: Any, made: Sequence[Any], share: Callable[[Any, Any, int], Tensor], queries: Sequence[Any] = QUERIES,
    query_losses: Losses = losses, total: Losses | None = None,
    ids: Callable[[Any], Tensor] = lambda batch: batch["example_id"],
) -> Tensor:  # fmt: skip
    """TracIn by SGD, one example at a time.

    Args:
        module: It is copied.
        share: ``(module, batch, i)``: a scalar whose gradient is example i's contribution.
        total: What the step differentiates; the shares must add up to it.

    Returns:
        ``[N, Q]``, in ascending order of ids.
    """
    module = copy.deepcopy(module)
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    scores: dict[int, Tensor] = {}
    for batch in made:
        module.eval()
        asked = torch.cat([per_example(module, list(query_losses(module, own))) for own in queries])
        module.train()
        of_batch = ids(batch).tolist()
        own = per_example(module, [share(module, batch, i) for i in range(len(of_batch))])
        for number, row in zip(of_batch, RATE * own @ asked.T, strict=True):
            scores[number] = scores.get(number, torch.zeros(len(asked)).double()) + row
        if total is not None:
            assert torch.allclose(own.sum(0), per_example(module, [total(module, batch)])[0], rtol=1e-9, atol=1e-12)
        for parameter, grad in zip(wanted, own.sum(0).split([p.numel() for p in wanted]), strict=True):
            parameter.data -= RATE * grad.view_as(parameter)
    return torch.stack([scores[number] for number in sorted(scores)])
