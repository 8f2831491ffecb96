"""Causal tracing joined to attribution: the layers in which a fact is read, and those in which proponents wrote it.

For each query, the layer profile of its causal effect (:mod:`ftrace.causal.profiles`) is set beside that of its
proponents' scores (:mod:`ftrace.evaluation.layer_profiles`). Layers are matched by name.

Shape letters: Q queries, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ftrace.causal.profiles import IN_WORDS, Reduction, effect_profile, flat_stacks
from ftrace.causal.prompt_trace import Outcome, PromptTrace, Stack
from ftrace.data import SENTINEL
from ftrace.evaluation.layer_profiles import FEW_LAYERS, ProfileAgreement, ScoreProfile, compare_profiles


@dataclass(frozen=True)
class Layer:
    """A layer that has both causal effects and scores.

    Args:
        stack: The layer's stack.
        number: The layer's number in the stack, from 0.
        part: The layer's name in the score store.
    """

    stack: Stack
    number: int
    part: str


@dataclass(frozen=True)
class JoinedQuery:
    """Both profiles of a query.

    Args:
        trace: The result of causal tracing.
        profile: The proponents' scores by part of the model.
        effects: The causal effect of each layer, ``[L]``.
        scores: The scores of each layer, ``[L]``.
        correlation: The rank correlation of both over layers; NaN if one of them is constant.
        mismatched: The mean rank correlation with the other profile of queries of other facts; NaN if there are none.
    """

    trace: PromptTrace
    profile: ScoreProfile
    effects: np.ndarray
    scores: np.ndarray
    correlation: float
    mismatched: float

    @property
    def query_id(self) -> int:
        """The query's id."""
        return self.profile.query_id

    @property
    def prompt(self) -> str:
        """The prompt, with a blank in place of each mask."""
        return SENTINEL.sub("___", self.trace.prompt)

    @property
    def share_outside(self) -> float:
        """The share of the scores that lies outside the layers; NaN if scores add up to 0."""
        total = self.profile.total
        return 1 - float(self.scores.sum()) / total if total else float("nan")


@dataclass(frozen=True)
class Joined:
    """Causal effects and scores by layer, of several queries.

    Args:
        queries: ``[Q]``.
        layers: ``[L]``: stack by stack, from the lowest.
        agreement: How well the two profiles agree.
        mediator: The mediator whose causal effects they are.
        reduction: How effects at several tokens became one number.
        outcome: The outcome that the effects are on.
        kind: The kind of score.
        summed_over: A description of the examples whose scores were summed.
        outside: Parts of the model that have scores but no causal effect, as they are in no layer that was traced.
        without_scores: Layers that were traced and have no scores.
        left_out: How many prompts were left out because they were not traced.
        seed: The seed of the intervals.
    """

    queries: tuple[JoinedQuery, ...]
    layers: tuple[Layer, ...]
    agreement: ProfileAgreement
    mediator: str
    reduction: Reduction
    outcome: Outcome
    kind: str
    summed_over: str
    outside: tuple[str, ...]
    without_scores: tuple[str, ...]
    left_out: int
    seed: int

    @property
    def share_outside(self) -> float:
        """The share of the scores that lies outside the layers, averaged over queries."""
        shares = np.array([query.share_outside for query in self.queries])
        return float(np.nanmean(shares)) if not np.isnan(shares).all() else float("nan")

    @property
    def notes(self) -> list[str]:
        """List what a reader of the numbers must know, in sentences."""
        known, number = self.agreement.num_queries, len(self.queries)
        notes = [
            f"causal effect: indirect effect of {self.mediator!r} on the answer's {self.outcome.replace('_', '-')}, "
            f"{IN_WORDS[self.reduction]}",
            f"score: {self.kind}, summed over {self.summed_over}",
        ]
        if self.outside:
            notes.append(
                f"{self.share_outside:.0%} of the scores are of parts that are in none of these layers and have no "
                f"causal effect to compare: {', '.join(self.outside)}"
            )
        if self.without_scores:
            notes.append(f"traced, but without scores, and left out: {', '.join(self.without_scores)}")
        if len(self.layers) < FEW_LAYERS:
            notes.append(f"with {len(self.layers)} layers a rank correlation is +1 or -1: it says little")
        if known < number:
            notes.append(f"{number - known} queries have a profile that is the same in all layers, and no correlation")
        if self.left_out:
            notes.append(f"{self.left_out} prompts were not traced and are left out")
        return notes


def join_profiles(
    traces: Sequence[PromptTrace],
    profiles: Sequence[ScoreProfile],
    layer_names: Mapping[Stack, Sequence[str]],
    *,
    kind: str,
    summed_over: str,
    prefix: str = "model",
    mediator: str = "mlp",
    reduction: Reduction = "sum",
    outcome: Outcome = "probability",
    seed: int = 0,
) -> Joined:
    """Join the causal traces of queries to their proponents' scores.

    Args:
        traces: Traces of queries; those that were not traced are left out and counted.
        profiles: One for each query that was traced; others are ignored.
        layer_names: The names of each stack's layers within the model; see
            :attr:`ftrace.causal.CausalTracer.layer_names`.
        kind: The kind of score.
        summed_over: A description of the examples whose scores were summed.
        prefix: The name of the model within the module that was trained: "model" in a FactLM, "" if it is that module.
        mediator: The mediator whose causal effects to take.
        reduction: How effects at several tokens become one number; see :data:`ftrace.causal.profiles.Reduction`.
        outcome: The outcome that effects are on.
        seed: The seed of the intervals.

    Raises:
        ValueError: If no query was traced, a query comes twice or has no scores, no layer has scores, the mediator
            was not traced, or it restores the same in all layers of a stack.
    """
    traced = [trace for trace in traces if trace.stacks]
    by_query = {profile.query_id: profile for profile in profiles}
    _check(traces, traced, by_query)
    effect_profiles = [effect_profile(trace, layer_names, mediator, reduction, outcome) for trace in traced]
    stacks = {stack: names for stack, names in layer_names.items() if any(stack in trace.stacks for trace in traced)}
    flat = flat_stacks(effect_profiles, stacks)
    if flat:
        raise ValueError(
            f"expected causal effects that differ by layer, found the same in all layers of the {flat[0]} for each "
            f"query: {mediator!r} restores the same whichever the layer. Trace with a smaller window, such as window: 1"
        )
    score_profiles = [by_query[int(trace.query_id)] for trace in traced if trace.query_id is not None]
    parts = {name: f"{prefix}.{name}" if prefix else name for names in stacks.values() for name in names}
    matched = {name: part for name, part in parts.items() if part in score_profiles[0].parts}
    if not matched:
        raise ValueError(
            f"expected scores of layers that are called as {next(iter(parts.values()))!r}, found scores of "
            f"{list(score_profiles[0].parts)[:4]}. Are they of this model?"
        )
    effects_QL = np.array([[profile[name] for name in matched] for profile in effect_profiles])
    scores_QL = np.array([[profile.parts[part] for part in matched.values()] for profile in score_profiles])
    facts = [trace.fact or f"query {trace.query_id}" for trace in traced]
    agreement = compare_profiles(effects_QL, scores_QL, facts, seed)
    return Joined(
        tuple(
            JoinedQuery(*row)
            for row in zip(
                traced, score_profiles, effects_QL, scores_QL, agreement.by_query.tolist(),
                agreement.by_query_mismatched.tolist(), strict=True,
            )
        ),
        tuple(
            Layer(stack, number, matched[name])
            for stack, names in stacks.items()
            for number, name in enumerate(names)
            if name in matched
        ),
        agreement, mediator, reduction, outcome, kind, summed_over,
        tuple(part for part in score_profiles[0].parts if part not in matched.values()),
        tuple(name for name in parts if name not in matched),
        len(traces) - len(traced), seed,
    )  # fmt: skip


def _check(traces: Sequence[PromptTrace], traced: Sequence[PromptTrace], by_query: Mapping[int, ScoreProfile]) -> None:
    if not traced:
        raise ValueError(
            f"expected at least one query that was traced, found none of {len(traces)}. Does the model answer any "
            "correctly?"
        )
    ids = [trace.query_id for trace in traced]
    unknown = [trace.name for trace in traced if trace.query_id is None]
    if unknown:
        raise ValueError(f"prompt {unknown[0]!r}: expected a query's, found no query_id: it has no scores to join")
    if len(set(ids)) < len(ids):
        raise ValueError(f"expected each query once, found {len(ids)} prompts of {len(set(ids))} queries")
    missing = [query for query in ids if query not in by_query]
    if missing:
        raise ValueError(f"expected scores of each query that was traced, found none of {missing[:3]}")
    names = list(next(iter(by_query.values())).parts)
    if any(list(profile.parts) != names for profile in by_query.values()):
        raise ValueError("expected scores of one store, found queries with different parts")
