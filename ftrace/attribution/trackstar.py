"""TrackStar: cosines of preconditioned, projected, whitened gradients (Chang et al. 2024, arXiv 2410.17413, sec. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, fields
from typing import ClassVar, Literal

from ftrace.arguments import Count, Name, Positive, PositiveNumber, Seed, Share, checked
from ftrace.attribution.method import AttributionMethod, Task
from ftrace.index.settings import (
    OLD_OPTIONS,
    OLD_SEARCH_OPTIONS,
    FeatureSettings,
    Layout,
    PreconditionerKind,
    ProjectionSide,
    SearchSettings,
    WhichR,
    WhiteningSettings,
)
from ftrace.models import Output
from ftrace.renamed import use_new_names
from ftrace.scores import ScoreStore


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
        from ftrace.attribution.trackstar_scores import make_index, score_by_index
        from ftrace.index import GradientIndex

        whitening = WhiteningSettings(self.autocorrelation, self.mix, self.rank_share, self.damping)
        settings = SearchSettings(whitening, self.unit_norm, self.weighted, self.precondition_queries, self.learning)
        with task.claim(self):
            if self.index is None:
                index = make_index(task, self.snapshots, self._features, self.output)
            else:
                index = GradientIndex(task.run_dir / self.index)
            return score_by_index(self, task, index, settings, self.answers, self.output)

    @property
    def _features(self) -> FeatureSettings:
        parameters = None if self.parameters is None else tuple(self.parameters)
        return FeatureSettings(
            self.projection_side, self.seed, self.layout, self.layer_groups, parameters, self.preconditioner
        )
