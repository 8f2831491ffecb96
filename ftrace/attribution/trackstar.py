"""TrackStar: cosines of corrected, projected, whitened gradients (Chang et al. 2024, arXiv 2410.17413, section 3)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ftrace.attribution.gradient_rows import GradientRows, rows_of_queries
from ftrace.attribution.index_pass import features_at, index_corpus, snapshot_of
from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.passes import Batch
from ftrace.attribution.task import Task, WhichSnapshots
from ftrace.index import (
    FeatureSettings,
    GradientIndex,
    IndexSettings,
    SegmentQueries,
    Whitening,
    WhiteningSettings,
    autocorrelation_of,
    make_whitening,
    prepare_queries,
    scored_chunks,
)
from ftrace.models import FactLM, Output
from ftrace.scores import ScoreStore, ScoreWriter


@dataclass(frozen=True)
class SearchSettings:
    """How examples are scored with an index.

    Args:
        whitening: Which R.
        unit_norm: Whether both sides have their norms divided out: with it, scores are cosines.
        weighted: Whether rows count by their weights: of an index that was written while training, a step's learning
            rate times its clip factor; of one of margins, 1 - p.
        correct_queries: Whether queries' gradients are divided by second moments as the rows' are. Without it, weighted
            and neither whitened nor of unit norm, a score is the first-order effect of the optimizer's steps, in nats.
        learning: Whether a segment counts by p (1 - p), where p is the probability of the query's answer at its
            weights: of an index of several segments, those count in which the answer was being learned.
        output: What is differentiated of the queries: "loss", "margin" or "logit".
        answers: What a query's loss is: "one", its own answer; "any", all accepted ones; default: as the run's.
    """

    whitening: WhiteningSettings = WhiteningSettings()  # noqa: RUF009 - frozen
    unit_norm: bool = True
    weighted: bool = False
    correct_queries: bool = True
    learning: bool = False
    output: Output = "loss"
    answers: Literal["one", "any"] | None = None


@dataclass(frozen=True)
class PreparedSearch:
    """Queries that are ready to be searched for.

    Args:
        index: The index.
        queries: For each of its segments, what rows are multiplied with.
        whitenings: For each segment, the task's.
        white_rows: For each segment, the queries' whitened rows ``[Q, D]``.
        seconds: What it took: "queries" and "norms", of the rows, the one pass that a task needs.
    """

    index: GradientIndex
    queries: list[SegmentQueries]
    whitenings: list[Whitening]
    white_rows: list[Tensor]
    seconds: dict[str, float]


def prepare_search(
    index: GradientIndex,
    load_model: Callable[[Path], FactLM],
    batches: Sequence[Batch],
    settings: SearchSettings = SearchSettings(),
    task_batches: Sequence[Batch] | None = None,
    device: torch.device | str = "cpu",
) -> PreparedSearch:
    """Differentiate queries at the weights of each segment, and whiten them.

    Args:
        index: The index.
        load_model: Gives the model at the folder of a snapshot.
        batches: The queries.
        settings: How.
        task_batches: The queries of the task that R is mixed of; default: those that are searched for.
        device: Where queries are differentiated.

    Raises:
        ValueError: If the model or a snapshot is not the index's.
    """
    place = torch.device(device)
    queries, whitenings, white_rows = [], [], []
    seconds = {"queries": 0.0, "norms": 0.0}
    for segment in index.segments:
        started = time.perf_counter()
        model: FactLM = load_model(snapshot_of(index, segment)).to(place)

        def rows_of(some: Sequence[Batch], *, corrected: bool, model: FactLM = model, segment: Any = segment) -> Tensor:
            made = GradientRows(model, features_at(index, segment, model, corrected=corrected), settings.output)
            try:
                return rows_of_queries(made, some, place, settings.answers)
            finally:
                made.capture.detach()

        rows = rows_of(batches, corrected=settings.correct_queries)
        blocks, of_task = list(index.blocks), None
        if settings.whitening.autocorrelation == "mixed":
            task_rows = rows if task_batches is None else rows_of(task_batches, corrected=settings.correct_queries)
            of_task = autocorrelation_of(task_rows, blocks)
        whitening = make_whitening(_ordered(segment.autocorrelation(), blocks), of_task, settings.whitening)
        differentiated = time.perf_counter()
        cache = index.folder / "norms"
        prepared = prepare_queries(
            segment, rows, whitening, cache, unit_norm=settings.unit_norm, weighted=settings.weighted
        )
        if settings.learning:
            weights = _learning_weights(model, batches, place).to(prepared.vectors)
            prepared = replace(prepared, vectors=prepared.vectors * weights.unsqueeze(1))
        queries.append(prepared)
        whitenings.append(whitening)
        white_rows.append(whitening.white(rows))
        seconds["queries"] += differentiated - started
        seconds["norms"] += time.perf_counter() - differentiated
    return PreparedSearch(index, queries, whitenings, white_rows, seconds)


@torch.no_grad()
def _learning_weights(model: FactLM, batches: Sequence[Batch], device: torch.device) -> Tensor:
    """``p (1 - p)`` of each query's answer, ``[Q]``: how fast p moves with its logit."""
    moved = ({name: one.to(device) for name, one in batch.items()} for batch in batches)
    p = torch.exp(-torch.cat([model.example_losses(batch).cpu() for batch in moved]))
    return p * (1 - p)


def _ordered(of_blocks: dict[str, Tensor], blocks: Sequence[str]) -> dict[str, Tensor]:
    """Files of tensors are in an order of their own; rows are not."""
    return {block: of_blocks[block] for block in blocks}


@dataclass(frozen=True)
class TrackStar(AttributionMethod):
    """Cosines of gradients that are divided by the optimizer's second moments, projected and whitened, at one snapshot.

    Args:
        index: Folder of a gradient index, relative to the run's; default: made beside the store, kept for searches.
        snapshots: Of an index that is made: the one snapshot, "last", "first" or a step.
        side: Of an index that is made: K, each weight's gradient becomes K x K.
        layout: Of an index that is made: which weights share a block: "pooled", "layer" or "parameter".
        groups: Of the layout "pooled": groups of layers.
        parameters: Of an index that is made: globs over parameter names; default: matrices of the model's blocks.
        correction: Of an index that is made: "rank-one", "elementwise" or "none".
        output: What is differentiated, of examples and queries: "loss", "margin" or "logit".
        autocorrelation: "mixed", of the corpus and the task's queries; "train"; "none".
        mix: lambda, the queries' share of the mixture; default: by the rule on their spectra.
        rank_share: Where that rule looks, as a share of all dimensions.
        damping: Of R, as a share of its mean eigenvalue.
        unit_norm: Whether norms are divided out.
        weighted: Whether rows count by their weights.
        correct_queries: Whether queries are divided by second moments too.
        learning: Whether segments of an index count by p (1 - p) of the query's answer at their weights.
        answers: What a query's loss is; default: as the run's.
        seed: Of the projection, and of the sample for R.
    """

    name: ClassVar[str] = "trackstar"

    index: str | None = None
    snapshots: Literal["last", "first"] | int = "last"
    side: int = 16
    layout: Literal["pooled", "layer", "parameter"] = "pooled"
    groups: int = 8
    parameters: Sequence[str] | None = None
    correction: Literal["rank-one", "elementwise", "none"] = "rank-one"
    output: Literal["loss", "margin", "logit"] = "loss"
    autocorrelation: Literal["mixed", "train", "none"] = "mixed"
    mix: float | None = None
    rank_share: float = WhiteningSettings.rank_share
    damping: float = WhiteningSettings.damping
    unit_norm: bool = True
    weighted: bool = False
    correct_queries: bool = True
    learning: bool = False
    answers: Literal["one", "any"] | None = None
    seed: int = 0

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples with an index, which is written first where there is none."""
        whitening = WhiteningSettings(self.autocorrelation, self.mix, self.rank_share, self.damping)
        settings = SearchSettings(
            whitening, self.unit_norm, self.weighted, self.correct_queries, self.learning, self.output, self.answers
        )
        index = self._index(task)
        if getattr(rank_zero_only, "rank", 0):  # the first process writes the store
            torch.distributed.barrier()
            return ScoreStore.open(task.output_dir)
        prepared = prepare_search(index, task.model_at, task.query_batches(), settings)
        facts = {
            "index": str(index.folder),
            "mix": [one.mix for one in prepared.whitenings],
            "coverage": {"blocks": index.blocks, "left_out": index.manifest["left_out"]},
        }
        store = write_scores(self, task, prepared, facts)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        return store

    def _index(self, task: Task) -> GradientIndex:
        if self.index is not None:
            return GradientIndex(task.run_dir / self.index)
        parameters = None if self.parameters is None else tuple(self.parameters)
        features = FeatureSettings(self.side, self.seed, self.layout, self.groups, parameters, self.correction)
        which: WhichSnapshots = self.snapshots
        (snapshot,) = task.choose_snapshots(which)
        folder = task.output_dir.with_name(f"{task.output_dir.name}-index")
        return index_corpus(replace(task, output_dir=folder), snapshot, IndexSettings(features), self.output)


def write_scores(
    method: AttributionMethod, task: Task, prepared: PreparedSearch, facts: dict[str, Any], kind: str = "trackstar"
) -> ScoreStore:
    """Write the store of all scores, chunk by chunk.

    Raises:
        ValueError: If the index lacks an example.
    """
    known = np.concatenate([np.asarray(segment.ids) for segment in prepared.index.segments])
    missing = np.setdiff1d(task.examples, known)
    if len(missing):
        raise ValueError(
            f"expected rows of all {len(task.examples)} examples in {str(prepared.index.folder)!r}, found none of "
            f"{len(missing)}, such as {missing[:3].tolist()}"
        )
    dtype = np.float64 if prepared.index.settings.dtype == "float64" else np.float32
    with ScoreWriter(task.output_dir, task.examples, task.queries, [kind], dtype) as writer:
        for ids, scores in scored_chunks(prepared.index, prepared.queries):
            _, rows, places = np.intersect1d(task.examples, ids, assume_unique=True, return_indices=True)
            if len(rows):
                writer.put(kind, scores[torch.from_numpy(places)].numpy(), slice(rows[0], rows[-1] + 1))
        return writer.finish(
            {**task.describe(method), **facts, "seconds": round(time.perf_counter() - task.started, 3)}
        )
