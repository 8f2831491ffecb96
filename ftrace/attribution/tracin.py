"""TracIn: products of loss gradients, at one or several snapshots (Pruthi et al. 2020, arXiv 2002.08484, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from ftrace.arguments import Count, Name, Seed, checked
from ftrace.attribution.method import AttributionMethod, Task
from ftrace.index.settings import ProjectionSide
from ftrace.scores import ScoreStore

Kind = Literal["dot", "cosine", "tensor_cosine"]


@checked
@dataclass(frozen=True)
class TracIn(AttributionMethod):
    """Inner products or cosines of the gradients of an example's and a query's loss, over snapshots.

    Args:
        snapshots: "last", "first", "all", or a list of steps.
        weight: The weight of a snapshot: "mean", the same for all; "learning_rate", the rate that the next step
            used, so that dot is the sum of TracIn's eq. 1, and the cosines are weighted means.
        kinds: "dot"; "cosine" of the gradients over all parameters; "tensor_cosine", the mean over parameters of the
            cosine of each one's gradients.
        preconditioned: Divide both gradients by the root of the snapshot's second moments.
        parameters: Globs over parameter names, in order; one that begins with "!" excludes.
        end_of_sequence: Whether both losses count the end-of-sequence token of the target; default: examples' losses
            do, as in training, and queries' as the run's.
        answers: What a query's loss is: "one", its own answer; "any", all accepted ones; default: as the run's.
        breakdown: "layer": dot also by layer, and a kind cosine.LAYER for each layer, of its own gradients.
        projection_side: Project each weight's gradient to that many rows and columns; default: exact.
        seed: Of the projection.
    """

    name: ClassVar[Name] = "tracin"

    snapshots: Literal["last", "first", "all"] | list[Count] = "last"
    weight: Literal["mean", "learning_rate"] = "mean"
    kinds: Sequence[Kind] = ("dot", "cosine")
    preconditioned: bool = False
    parameters: Sequence[Name] = ("*",)
    end_of_sequence: bool | None = None
    answers: Literal["one", "any"] | None = None
    breakdown: Literal["layer"] | None = None
    projection_side: ProjectionSide | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds: expected at least one, each once, found {list(self.kinds)}")

    def score(self, task: Task) -> ScoreStore:
        """Score the task's examples, in eval mode."""
        from ftrace.attribution.tracin_scores import GradientScores

        scores = GradientScores(
            self.parameters, self.kinds, self.breakdown, self.end_of_sequence, self.answers, self.preconditioned,
            self.projection_side, self.seed,
        )  # fmt: skip
        return scores.write(self, task, self.snapshots, self.weight)
