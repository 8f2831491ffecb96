"""TrackStar: cosines of preconditioned, projected, whitened gradients (Chang et al. 2024, arXiv 2410.17413, sec. 3)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from ftrace.arguments import Count, Name, Positive, PositiveNumber, Seed, Share, checked
from ftrace.attribution.index_pass import answer_lengths, index_corpus, measured
from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.task import Task, WhichSnapshots
from ftrace.gradients import ProjectionSide
from ftrace.index import (
    OLD_OPTIONS,
    OLD_SEARCH_OPTIONS,
    FeatureSettings,
    GradientIndex,
    IndexSettings,
    Layout,
    PreconditionerKind,
    PreparedSearch,
    SearchSettings,
    WhichR,
    WhiteningSettings,
    prepare_search,
    scored_chunks,
)
from ftrace.models import Output
from ftrace.renamed import use_new_names
from ftrace.scores import ScoreStore, ScoreWriter


@checked
@dataclass(frozen=True)
class TrackStar(AttributionMethod):
    """Cosines of gradients that are divided by the optimizer's second moments, projected and whitened, at one snapshot.

    Its kind is "cosine", or without unit norm "dot".

    Args:
        index: Folder of a gradient index, relative to the run's; default: made beside the store, kept for searches.
        snapshots: Of an index that is made: the one snapshot, "last", "first" or a step.
        projection_side: Of an index that is made: K, each weight's gradient becomes K x K.
        layout: Of an index that is made: which weights share a block: "pooled", "layer" or "parameter".
        layer_groups: Of the layout "pooled": how many groups of layers.
        parameters: Of an index that is made: globs over parameter names; default: matrices of the model's blocks.
        preconditioner: Of an index that is made: what gradients are divided by: "rank-one", "elementwise" or "none".
        output: What is differentiated, of examples and queries: "loss", "margin" or "logit".
        autocorrelation: "mixed", of the corpus and the task's queries; "train"; "none".
        mix: lambda, the weight of the queries in the mixture; default: by the rule on their spectra.
        rank_share: The rank, as a share of all dimensions, at which the two spectra are compared to choose lambda.
        damping: Of R, as a share of its mean eigenvalue.
        unit_norm: Whether norms are divided out.
        weighted: Whether rows count by their weights.
        precondition_queries: Whether queries are divided by second moments too.
        learning: Whether segments of an index count by the root of p (1 - p) of the query's answer at their weights.
        answers: What a query's loss is; default: as the run's.
        seed: Of the projection, and of the sample for R.
        side: Deprecated: the old name of ``projection_side``.
        groups: Deprecated: the old name of ``layer_groups``.
        correction: Deprecated: the old name of ``preconditioner``.
        correct_queries: Deprecated: the old name of ``precondition_queries``.
    """

    name: ClassVar[Name] = "trackstar"
    renamed_options: ClassVar[Mapping[str, str]] = {**OLD_OPTIONS, **OLD_SEARCH_OPTIONS}

    index: Name | None = None
    snapshots: Literal["last", "first"] | Count = "last"
    projection_side: ProjectionSide = FeatureSettings.projection_side
    layout: Layout = FeatureSettings.layout
    layer_groups: Positive = FeatureSettings.layer_groups
    parameters: Sequence[Name] | None = None
    preconditioner: PreconditionerKind = FeatureSettings.preconditioner
    output: Output = "loss"
    autocorrelation: WhichR = WhiteningSettings.autocorrelation
    mix: Share | None = WhiteningSettings.mix
    rank_share: Share = WhiteningSettings.rank_share
    damping: PositiveNumber = WhiteningSettings.damping
    unit_norm: bool = SearchSettings.unit_norm
    weighted: bool = SearchSettings.weighted
    precondition_queries: bool = SearchSettings.precondition_queries
    learning: bool = SearchSettings.learning
    answers: Literal["one", "any"] | None = None
    seed: Seed = FeatureSettings.seed
    side: InitVar[ProjectionSide | None] = None
    groups: InitVar[Positive | None] = None
    correction: InitVar[PreconditionerKind | None] = None
    correct_queries: InitVar[bool | None] = None

    def __post_init__(
        self,
        side: int | None,
        groups: int | None,
        correction: PreconditionerKind | None,
        correct_queries: bool | None,
    ) -> None:
        old = {"side": side, "groups": groups, "correction": correction, "correct_queries": correct_queries}
        options = {**{new: getattr(self, new) for new in self.renamed_options.values()}, **old}
        defaults = {field.name: field.default for field in fields(self)}
        for name, value in use_new_names(self.name, options, self.renamed_options, defaults).items():
            object.__setattr__(self, name, value)

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples with an index, which is written first where there is none."""
        with task.claim(self):
            return self._score(task)

    def _score(self, task: Task) -> ScoreStore:
        whitening = WhiteningSettings(self.autocorrelation, self.mix, self.rank_share, self.damping)
        settings = SearchSettings(whitening, self.unit_norm, self.weighted, self.precondition_queries, self.learning)
        index = self._index(task)
        if getattr(rank_zero_only, "rank", 0):  # the first process writes the store
            torch.distributed.barrier()
            return ScoreStore.open(task.output_dir)
        losses, output = measured("loss", self.answers), measured(self.output, self.answers)
        prepared = prepare_search(
            index, task.model_at, task.query_batches(), losses, settings, output=output,
            snapshots=task.snapshots[0].parent if task.snapshots else None, lengths=answer_lengths,
        )  # fmt: skip
        facts = {
            "index": str(index.folder),
            "mix": [whitening.mix for whitening in prepared.whitenings],
            "coverage": {"blocks": index.blocks, "left_out": index.manifest["left_out"]},
        }
        store = write_scores(self, task, prepared, facts, "cosine" if self.unit_norm else "dot")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        return store

    def _index(self, task: Task) -> GradientIndex:
        if self.index is not None:
            return GradientIndex(task.run_dir / self.index)
        parameters = None if self.parameters is None else tuple(self.parameters)
        features = FeatureSettings(
            self.projection_side, self.seed, self.layout, self.layer_groups, parameters, self.preconditioner
        )
        which: WhichSnapshots = self.snapshots
        (snapshot,) = task.choose_snapshots(which)
        folder = task.output_dir.with_name(f"{task.output_dir.name}-index")
        return index_corpus(replace(task, output_dir=folder), snapshot, IndexSettings(features), self.output)


def write_scores(
    method: AttributionMethod, task: Task, prepared: PreparedSearch, facts: dict[str, Any], kind: str
) -> ScoreStore:
    """Write the store of all scores, of one kind, chunk by chunk.

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
            _, rows, positions = np.intersect1d(task.examples, ids, assume_unique=True, return_indices=True)
            if len(rows):
                writer.put(kind, scores[torch.from_numpy(positions)].numpy(), slice(rows[0], rows[-1] + 1))
        return writer.finish(
            {**task.describe(method), **facts, "seconds": round(time.perf_counter() - task.started, 3)}, *task.texts()
        )
