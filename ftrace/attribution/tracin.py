"""TracIn at one snapshot of a finished run (Pruthi et al. 2020, arXiv 2002.08484, one term of eq. 1)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader

from ftrace.gradients import (
    GradientCapture,
    PerExampleGradients,
    QueryGradients,
    cosines,
    inner_products_and_square_norms,
)
from ftrace.models import FactLM
from ftrace.scores import ScoreAccumulator, ScoreStore, Sum


def score_by_tracin(
    model: FactLM,
    examples: DataLoader,
    queries: DataLoader,
    output_dir: str | Path,
    manifest: dict[str, Any] | None = None,
) -> ScoreStore:
    """Score all examples for all queries by the gradients of their losses at the model's weights, in eval mode.

    Args:
        model: The model at a snapshot.
        examples: Batches with ``example_id``.
        queries: Batches with ``query_id``.
        output_dir: Where the store goes.
        manifest: More to say about the scores.

    Returns:
        A store of the kinds ``dot``, the inner product of the gradients over all parameters, and ``cosine``.

    Raises:
        ValueError: If a parameter can't be covered, or the first batch's gradients don't sum to autograd's.
    """
    model.eval()
    capture = GradientCapture(model, strict=True)
    names = capture.coverage.covered
    with capture:
        batches = [_to(batch, model.device) for batch in queries]
        query_ids = torch.cat([batch["query_id"] for batch in batches]).cpu()
        gradients = [_gradients(capture, model, batch) for batch in batches]
        _hold_against_autograd(model, batches[0], gradients[0])
        prepared = QueryGradients(PerExampleGradients.stack(gradients), batches=len(examples))
        query_norms = prepared.norms(names)
        sums = ScoreAccumulator(("dot", "cosine"), query_ids.tolist())
        batches_of_examples: Iterable[dict[str, Tensor]] = track(examples, "TracIn", total=len(examples))
        for batch in batches_of_examples:
            of_batch = _gradients(capture, model, _to(batch, model.device))
            dot, square_norms = inner_products_and_square_norms(of_batch, prepared, names)
            cosine = cosines(dot, square_norms.sqrt(), query_norms)
            sums.add(batch["example_id"], {Sum("dot"): dot, Sum("cosine"): cosine})
    example_ids, scores = sums.arrays()
    facts = {"method": "TracIn", "coverage": capture.coverage.as_json(), **(manifest or {})}
    return ScoreStore.write(output_dir, example_ids, query_ids.numpy(), scores, facts)


def _gradients(capture: GradientCapture, model: FactLM, batch: dict[str, Tensor]) -> PerExampleGradients:
    with capture.recording(len(batch["labels"])) as recording:
        recording.backward(model.example_losses(batch))
    return recording.gradients()


def _hold_against_autograd(model: FactLM, batch: dict[str, Tensor], gradients: PerExampleGradients) -> None:
    """What is read off layers must sum to the gradient: a weight may be used outside of its layer too."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(model.example_losses(batch).sum(), list(named.values()), allow_unused=True)
    whole = torch.stack([grad.norm() for grad in found if grad is not None]).norm()
    for name, grad in zip(named, found, strict=True):
        total = gradients.total(name) if name in gradients.parts else torch.zeros_like(named[name])
        expected = torch.zeros_like(total) if grad is None else grad
        if not (total - expected).norm() <= 1e-3 * (expected.norm() + 1e-3 * whole):
            raise ValueError(
                f"TracIn can't cover {name!r}: the rows' gradients don't sum to the batch's. Something may use it "
                "outside of its layer's forward"
            )


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
