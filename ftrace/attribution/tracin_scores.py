"""Products of loss gradients at snapshots, as scores of a task's examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ftrace.attribution.gradient_check import check_against_autograd
from ftrace.attribution.method import AttributionMethod
from ftrace.attribution.passes import Batch, Pass, Scorer, score_in_passes
from ftrace.attribution.preconditioners_of_snapshots import snapshot_preconditioners
from ftrace.attribution.task import Task, WhichSnapshots
from ftrace.files.snapshot_files import SnapshotFiles
from ftrace.gradients import (
    Coverage,
    Elementwise,
    GradientCapture,
    PerExampleGradients,
    Preconditioner,
    Projection,
    QueryGradients,
    RankOne,
    cosines,
    inner_products_and_square_norms,
    layer_of,
    precondition,
    project,
)
from ftrace.models import FactLM
from ftrace.scores import ScoreStore, Sum


@dataclass(frozen=True)
class GradientScores:
    """Scores by gradients of losses; the options are those of :class:`ftrace.attribution.TracIn`."""

    parameters: Sequence[str]
    kinds: Sequence[str]
    breakdown: Literal["layer"] | None
    end_of_sequence: bool | None
    answers: Literal["one", "any"] | None
    preconditioned: bool
    projection_side: int | None
    seed: int

    def write(
        self,
        method: AttributionMethod,
        task: Task,
        snapshots: WhichSnapshots,
        weight: Literal["mean", "learning_rate"],
    ) -> ScoreStore:
        """Score a task's examples, in a method's name.

        Args:
            method: The method.
            task: What to score.
            snapshots: At which snapshots.
            weight: The weight of each: see :class:`ftrace.attribution.TracIn`.

        Raises:
            ValueError: If no parameter is trained, or a snapshot lacks what is asked for.
        """
        folders = task.choose_snapshots(snapshots)
        model = task.model_at(folders[0])
        coverage = GradientCapture(model, self.parameters, strict=True).coverage
        if not coverage.covered:
            raise ValueError(f"parameters: expected at least one to be trained. {coverage.summary()}")
        if self.preconditioned:
            for folder in folders:
                snapshot_preconditioners(folder, model)  # an error at the third snapshot should not cost two passes
        weights = _weights(folders, coverage, weight)
        step = self._queries_of_a_pass(model, coverage, task)
        answers = self.answers or model.hparams["answers"]
        del model
        passes = [
            Pass(first, last, partial(self._begin, task, folder, of_snapshot, first, last))
            for first, last in _ranges(len(task.queries), step)
            for folder, of_snapshot in zip(folders, weights, strict=True)
        ]
        facts = {
            "snapshots": [folder.name for folder in folders],
            "snapshot_weights": [of_snapshot["dot"] for of_snapshot in weights],
            "answers": answers,
            "coverage": coverage.as_json(),
        }
        return score_in_passes(method, task, passes, task.data.example_dataloader().collate_fn, facts)

    def _queries_of_a_pass(self, model: FactLM, coverage: Coverage, task: Task) -> int:
        """Count the queries whose gradients fit into half of the memory budget, as factors where these are smaller.

        The other half is for the dense gradients that products may keep.
        """
        batches = task.query_batches()
        positions = max(sum(math.prod(tensor.shape[1:]) for tensor in batch.values()) for batch in batches)
        parameters = dict(model.named_parameters())
        elements = 0
        for name in coverage.covered:
            size, rows = parameters[name].numel(), len(parameters[name]) if parameters[name].ndim else 1
            if self.projection_side is not None:
                elements += self.projection_side**2
            else:
                elements += size if self.preconditioned else min(size, positions * (rows + size // max(1, rows)))
        element = next(iter(parameters.values())).element_size()
        return max(1, task.memory_budget // 2 // max(1, elements * element))

    def _begin(
        self, task: Task, folder: Path, weights: Mapping[str, float], first: int, last: int, device: torch.device
    ) -> Scorer:
        """Differentiate queries at a snapshot, and make the function that scores examples by their gradients."""
        model = task.model_at(folder).to(device)
        if self.answers is not None:
            model.hparams["answers"] = self.answers
        capture = GradientCapture(model, self.parameters, strict=True)
        names = capture.coverage.covered
        read = partial(_gradients, capture, model, self.end_of_sequence)
        change = self._change(model, folder)
        capture.attach()
        with torch.enable_grad():
            gradients: list[PerExampleGradients] = []
            for batch in task.query_batches(first, last):
                on_device = {name: tensor.to(device) for name, tensor in batch.items()}
                of_batch = read(on_device)
                if not gradients:
                    losses = model.example_losses(on_device, end_of_sequence=self.end_of_sequence)
                    check_against_autograd(model, losses, of_batch, names, "TracIn")
                gradients.append(change(of_batch))
        budget = max(1, task.memory_budget // 2)
        batches = len(task.examples) / (task.batch_size or task.data.batch_size)
        queries = QueryGradients(PerExampleGradients.stack(gradients), memory_budget=budget, batches=max(1, batches))
        groups = self._groups(names)
        norms = {group: queries.norms(of_group) for group, of_group in groups.items()}

        def score(batch: Batch) -> dict[Sum, Tensor]:
            taken: dict[str, list[tuple[Tensor, Tensor]]] = {group: [] for group in groups}

            def take(gradients: PerExampleGradients) -> None:
                of_examples = change(gradients)
                for group, of_group in groups.items():
                    given = [name for name in of_group if name in of_examples.parts]
                    if given:
                        taken[group].append(inner_products_and_square_norms(of_examples, queries, given))

            with torch.enable_grad():
                take(read(batch, take))
            size = len(batch["labels"])
            none = queries.gradients.zeros(size, last - first), queries.gradients.zeros(size)
            products = {
                group: (sum((dot for dot, _ in of_group), none[0]), sum((square for _, square in of_group), none[1]))
                for group, of_group in taken.items()
            }
            scores = self._scores(products, norms)
            return {key: values * weights[key.kind.partition(".")[0]] for key, values in scores.items()}

        return score

    def _change(self, model: FactLM, folder: Path) -> Callable[[PerExampleGradients], PerExampleGradients]:
        """Make the function that preconditions and projects gradients, of examples and queries alike."""
        factors: dict[str, Preconditioner] = {}
        if self.preconditioned:
            parameters = dict(model.named_parameters())
            of_snapshot = snapshot_preconditioners(folder, model)
            factors = {name: _like(parameters[name], factor) for name, factor in of_snapshot.items()}
        projection = None if self.projection_side is None else Projection(self.projection_side, self.seed)

        def change(gradients: PerExampleGradients) -> PerExampleGradients:
            if self.preconditioned:
                gradients = precondition(gradients, factors)
            return gradients if projection is None else project(gradients, projection)

        return change

    def _groups(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Group the parameters whose products are summed."""
        groups: dict[str, list[str]] = {}
        for name in names:
            group = name if "tensor_cosine" in self.kinds else layer_of(name) if self.breakdown else "*"
            groups.setdefault(group, []).append(name)
        return groups

    def _scores(self, products: Mapping[str, tuple[Tensor, Tensor]], norms: Mapping[str, Tensor]) -> dict[Sum, Tensor]:
        """Compute all kinds of scores from the products and square norms of each group of parameters."""
        scores: dict[Sum, Tensor] = {}
        for kind in self.kinds:
            if kind == "tensor_cosine":
                each = [cosines(dot, square.sqrt(), norms[group]) for group, (dot, square) in products.items()]
                scores[Sum(kind)] = torch.stack(each).mean(0)
            else:
                scores[Sum(kind)] = _over(list(products), products, norms, cosine=kind == "cosine")
        layers: dict[str, list[str]] = {}
        for group in products if self.breakdown else ():
            layer = layer_of(group) if "tensor_cosine" in self.kinds else group
            layers.setdefault(layer, []).append(group)
        for layer, groups in layers.items():
            if "dot" in self.kinds:
                scores[Sum("dot", "layer", layer)] = _over(groups, products, norms, cosine=False)
            if "cosine" in self.kinds:
                scores[Sum(f"cosine.{layer}")] = _over(groups, products, norms, cosine=True)
        return scores


def _over(
    groups: Sequence[str],
    products: Mapping[str, tuple[Tensor, Tensor]],
    norms: Mapping[str, Tensor],
    *,
    cosine: bool,
) -> Tensor:
    """Compute the inner product, or the cosine, of the concatenated gradients of several groups."""
    dot = torch.stack([products[group][0] for group in groups]).sum(0)
    if not cosine:
        return dot
    of_examples = torch.stack([products[group][1] for group in groups]).sum(0).sqrt()
    of_queries = torch.stack([norms[group].square() for group in groups]).sum(0).sqrt()
    return cosines(dot, of_examples, of_queries)


def _gradients(
    capture: GradientCapture,
    model: FactLM,
    end_of_sequence: bool | None,
    batch: Batch,
    take: Callable[[PerExampleGradients], None] | None = None,
) -> PerExampleGradients:
    """Read a batch's gradients, without those that are taken during the backward pass."""
    with capture.recording(len(batch["labels"])) as recording:
        recording.backward(model.example_losses(batch, end_of_sequence=end_of_sequence), take)
    return recording.gradients()


def _weights(
    folders: Sequence[Path], coverage: Coverage, weight: Literal["mean", "learning_rate"]
) -> list[dict[str, float]]:
    """Compute the weight of each snapshot's scores, by kind."""
    mean = 1 / len(folders)
    if weight == "mean":
        return [{"dot": mean, "cosine": mean, "tensor_cosine": mean} for _ in folders]
    rates = [_learning_rate(folder, coverage.covered) for folder in folders]
    if not sum(rates):
        raise ValueError(
            f"weight: the learning rates of {[folder.name for folder in folders]} are 0, as after a schedule's "
            "last step. Choose earlier snapshots, or weight=mean"
        )
    fractions = [rate / sum(rates) for rate in rates]
    return [
        {"dot": rate, "cosine": fraction, "tensor_cosine": fraction}
        for rate, fraction in zip(rates, fractions, strict=True)
    ]


def _learning_rate(folder: Path, names: Sequence[str]) -> float:
    """Read the learning rate of the covered parameters at a snapshot.

    Raises:
        ValueError: If there are several.
    """
    groups = [group for optimizer in SnapshotFiles(folder).facts["optimizers"] for group in optimizer["groups"]]
    rates = {group["learning_rate"] for group in groups if set(group["parameters"]) & set(names)}
    if len(rates) != 1:
        raise ValueError(
            f"weight: expected one learning rate for all parameters at {folder.name}, found {sorted(rates)}. Choose "
            "parameters of one group, or weight=mean"
        )
    return float(rates.pop())


def _like(parameter: Tensor, factor: Preconditioner) -> Preconditioner:
    """Move a preconditioner to the device and the dtype of a parameter."""
    if isinstance(factor, RankOne):
        return RankOne(factor.rows.to(parameter), factor.columns.to(parameter))
    return Elementwise(factor.scale.to(parameter))


def _ranges(total: int, step: int) -> list[tuple[int, int]]:
    return [(first, min(first + step, total)) for first in range(0, total, step)]
