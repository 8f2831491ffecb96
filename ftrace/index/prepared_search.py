"""The queries of a search: differentiated at each segment's weights, whitened, and divided by their norms.

Models come from a function of the caller's, and so do their losses: any model will do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.files.inside import inside
from ftrace.files.snapshot_files import SnapshotFiles
from ftrace.gradients import coarsest_eps, learning_weights, of_passes
from ftrace.index.fingerprints import snapshot_fingerprint
from ftrace.index.gradient_index import GradientIndex
from ftrace.index.gradient_rows import GradientRows, Losses, on_device
from ftrace.index.search import SegmentQueries, TopExamples, prepare_queries, top_k
from ftrace.index.segment import Segment
from ftrace.index.settings import SearchSettings
from ftrace.index.whitening import Whitening, autocorrelation_of, make_whitening


@dataclass(frozen=True)
class PreparedSearch:
    """Queries that are ready to be searched for.

    Args:
        queries: For each of its segments, what rows are multiplied with.
        whitenings: For each segment, the task's.
        white_rows: For each segment, the queries' whitened rows ``[Q, D]``.
        seconds: What the preparation took: "queries", and "norms" of the rows, the one pass that a task needs.
    """

    index: GradientIndex
    queries: list[SegmentQueries]
    whitenings: list[Whitening]
    white_rows: list[Tensor]
    seconds: dict[str, float]

    def top(self, k: int) -> tuple[TopExamples, TopExamples]:
        """Find the strongest proponents and opponents of each query, exactly."""
        return top_k(self.index, self.queries, k)


def prepare_search(
    index: GradientIndex,
    load_model: Callable[[Path], nn.Module],
    batches: Sequence[Any],
    losses: Losses,
    settings: SearchSettings = SearchSettings(),  # noqa: B008
    task_batches: Sequence[Any] | None = None,
    output: Losses | None = None,
    device: torch.device | str = "cpu",
    snapshots: Path | None = None,
    lengths: Losses | None = None,
) -> PreparedSearch:
    """Differentiate queries at the weights of each segment, and whiten them.

    Args:
        load_model: Loads the model from the folder of a snapshot, in eval mode.
        batches: The queries.
        losses: ``(model, batch) -> Tensor[B]``, one loss a query, in nats.
        settings: The options of the search.
        task_batches: The queries of the task that R is mixed of; default: those that are searched for.
        output: What is differentiated, likewise; default: the losses.
        device: Where queries are differentiated.
        snapshots: Another folder with the snapshots, in case they are no longer beside the index.
        lengths: ``(model, batch) -> Tensor[B]``, the numbers of tokens of the queries' answers; default: 1 each.

    Raises:
        ValueError: If the model or a snapshot is not the index's.
    """
    at, blocks = torch.device(device), list(index.blocks)
    queries, whitenings, white_rows = [], [], []
    seconds = {"queries": 0.0, "norms": 0.0}
    for segment in index.segments:
        started = time.perf_counter()
        model = load_model(snapshot_of(index, segment, snapshots)).to(at)
        rows_of = GradientRows(model, _features(index, segment, model, settings), output or losses)
        rows = _rows(rows_of, batches, at)
        of_task = None
        if settings.whitening.autocorrelation == "mixed":
            task_rows = rows if task_batches is None else _rows(rows_of, task_batches, at)
            of_task = autocorrelation_of(task_rows.double(), blocks)  # in float32, rounding would add to its rank
        rows_of.detach()
        of_rows = segment.autocorrelation()
        whitening = make_whitening({block: of_rows[block] for block in blocks}, of_task, settings.whitening)
        differentiated = time.perf_counter()
        prepared = prepare_queries(
            segment, rows, whitening, index.folder / "norms", unit_norm=settings.unit_norm, weighted=settings.weighted
        )
        if settings.learning:
            weights = _learning_weights(model, batches, losses, lengths, at).to(prepared.vectors)
            prepared = replace(prepared, vectors=prepared.vectors * weights.unsqueeze(1))
        queries.append(prepared)
        whitenings.append(whitening)
        white_rows.append(whitening.white(rows))
        seconds["queries"] += differentiated - started
        seconds["norms"] += time.perf_counter() - differentiated
    return PreparedSearch(index, queries, whitenings, white_rows, seconds)


def snapshot_of(index: GradientIndex, segment: Segment, snapshots: Path | None = None) -> Path:
    """Find the folder of a segment's snapshot: in the index's or beside it, as it was noted, or else in another folder.

    Raises:
        ValueError: If it is missing, or has changed.
    """
    beside = index.folder.resolve().parent
    folder = (index.folder / segment.manifest["snapshot"]).resolve()
    if snapshots is not None and not (folder.exists() and beside in folder.parents):
        folder = inside(snapshots, folder.name)
    else:
        folder = inside(beside, folder)
    fingerprint = snapshot_fingerprint(folder)
    if fingerprint != segment.manifest["fingerprint"]:
        list(SnapshotFiles(folder).check_all())  # a damaged one says so by itself
        raise ValueError(
            f"snapshot {str(folder)!r} is not the one that {str(segment.folder)!r} was written at: expected the "
            f"fingerprint {segment.manifest['fingerprint']}, found {fingerprint}. Index again"
        )
    return folder


def _features(index: GradientIndex, segment: Segment, model: nn.Module, settings: SearchSettings) -> Any:
    made = index.features(segment, model)
    return made if settings.precondition_queries else made.without_preconditioner()


@torch.no_grad()
def _rows(rows_of: GradientRows, batches: Sequence[Any], device: torch.device) -> Tensor:
    rows = torch.cat([rows_of(on_device(batch, device))[0].cpu() for batch in batches])
    bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"expected queries whose gradients are finite, found NaN or infinity in those at {bad[:5]}")
    return rows


@torch.no_grad()
def _learning_weights(
    model: nn.Module, batches: Sequence[Any], losses: Losses, lengths: Losses | None, device: torch.device
) -> Tensor:
    """Compute how much each query is being learned at a segment's weights, ``[Q]``."""
    weights = []
    for batch in batches:
        moved = on_device(batch, device)
        of_batch = losses(model, moved)
        eps = coarsest_eps([of_batch.dtype, *(p.dtype for p in model.parameters())])
        if (of_batch < -of_passes(eps)).any():
            raise ValueError(
                "learning: expected losses that are -log of a query's probability, at least 0, found "
                f"{float(of_batch.min()):.3g}. Search without learning=True, or pass such losses, and what is to be "
                "differentiated as output"
            )
        weights.append(learning_weights(of_batch, None if lengths is None else lengths(model, moved)).cpu())
    return torch.cat(weights)
