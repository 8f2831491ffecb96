"""The settings of a traced run: one source for the callback, the plain loop and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from ftrace.arguments import Count, Name, NonNegativeNumber, Positive, PositiveNumber, Seed, checked, hold
from ftrace.gradients import Projection, ProjectionSide
from ftrace.online.refresh_schedule import Every
from ftrace.online.scoring.accumulator import Candidates
from ftrace.online.scoring.rules import KINDS, ScoringRules
from ftrace.online.scoring.whitened import Whitening
from ftrace.scores import as_ids, stable_id

_Given = Sequence[int | str] | Mapping[int | str, Sequence[int | str]] | None  # candidates, by number or name
BREAKDOWNS = ("layer", "epoch", "learned")


@checked
@dataclass(frozen=True)
class TraceSettings:
    """Settings of what is traced, and how.

    Args:
        scores: The kinds of scores, all computed in one pass. ``dot``: the sum over steps of learning rate x clip
            factor x inner product, in nats if the optimizer were SGD. ``update``: the first-order effect of the
            optimizer's actual steps in nats, for SGD, Adam, AdamW and Adafactor. ``cosine``: the sum over steps of the
            cosine, over the covered parameters. ``whitened``: the same for gradients that are divided by the root of
            the optimizer's second moments, projected, and whitened by their running autocorrelation. ``learning``:
            ``whitened``, with each step weighted by the root of p (1 - p), where p is the probability of the query's
            answer at the last refresh, so that the steps count in which it is being learned; recommended for ranking.
        parameters: Globs over parameter names, in order; one that begins with "!" excludes.
        refresh_every_n_steps: The number of optimizer steps after which the queries' gradients are recomputed. "auto":
            as fast as the queries' losses move, within ``refresh_share``. Default: "auto" if ``whitened`` or
            ``learning`` is among the scores, and otherwise 1, so that the other kinds are exact.
        projection_side: None for exact products. An integer K projects each weight's gradient at random on both sides
            to K x K (a vector's to K * K), so that products are right in expectation and cost next to nothing.
        integration: "left" uses the query gradients of the last refresh. "trapezoid" interpolates between refreshes,
            for ``dot`` and ``update``, and holds one interval's contributions in memory.
        momentum: How ``update`` attributes momentum to examples. "eventual": a gradient's entire later effect is booked
            at its own step, along that step's query gradients. "exact": contributions are held until their effect is
            over.
        whitening: Settings for the kinds ``whitened`` and ``learning``.
        candidates: The examples whose scores are kept: None for all; a list of example ids; or such a list for each
            query id, so that there is never a matrix of examples x queries.
        breakdown: Some of "layer", "epoch" and "learned" (before and after the query was first right), by which scores
            are also kept in parts. Memory grows with the number of parts.
        ledger: Whether to keep the ledger: how each query's loss changed between refreshes, beside what scores explain.
        staleness_every: The number of refreshes from one measurement of how much products change at a refresh to the
            next; 0: never.
        id_key: The key of the examples' ids in a batch: int64 ``[B]`` or a list of names.
        query_id_key: The key of the queries' ids in a batch of queries, likewise.
        strict: Whether a parameter that can't be covered, or a failed self-check, is an error; otherwise a warning and
            a line in the manifest.
        self_check: Whether to check single examples of rehearsed training steps, and one query, against plain autograd,
            until each parameter was checked with a gradient and at a few later steps; and at each step the sum of
            contributions against the gradient. Whose rows are whose is found out with and without it: before the first
            step, the training step is rehearsed some ten times, in which your own forward hooks fire, too.
        seed: Of the projection, and of the choice of examples that the self-check looks at.
        shared_ids: Whether several rows of the data may have the same id, such as the pieces of a document; their
            scores are added up.
        store: Where scores are held while training: "memory"; "disk", in a mapped file beside the output folder; or
            "auto", in memory up to half of what is free, and what is beyond that in a mapped file. Scores are the same.
        keep_states: Whether to keep the files for resuming also of checkpoints that ``ModelCheckpoint`` has deleted,
            as you need if you have copied these.
        refresh_share: What refreshes may cost with "auto", as a share of training's own work, by numbers of rows.
        moments_tolerance: By how much of its norm an optimizer's step, momentum aside, may differ from the one that
            its second moments of an earlier step would give, before projected ``update`` products take the current
            ones: the queries' gradients are then scaled and projected anew. 0: at each step.

    Raises:
        ValueError: On an unknown or unsupported option.
    """

    scores: Sequence[Name] = ("dot",)
    parameters: Sequence[Name] = ("*",)
    refresh_every_n_steps: Positive | Literal["auto"] | None = None
    projection_side: ProjectionSide | None = None
    integration: Literal["left", "trapezoid"] = "left"
    momentum: Literal["eventual", "exact"] = "eventual"
    whitening: Whitening = Whitening()  # noqa: RUF009 - frozen
    candidates: Any = None
    breakdown: Sequence[Name] = ()
    ledger: bool = True
    staleness_every: Count = 0
    id_key: Name | Count = "example_id"
    query_id_key: Name | Count = "query_id"
    strict: bool = True
    self_check: bool = True
    seed: Seed = 0
    shared_ids: bool = False
    store: Literal["memory", "disk", "auto"] = "auto"
    keep_states: bool = False
    refresh_share: PositiveNumber = 0.25
    moments_tolerance: NonNegativeNumber = 0.2

    def __post_init__(self) -> None:
        for name, values, known in (("scores", self.scores, KINDS), ("breakdown", self.breakdown, BREAKDOWNS)):
            unknown = [value for value in values if value not in known]
            if unknown or isinstance(values, str) or (name == "scores" and not values):
                raise ValueError(f"{name}: expected some of {list(known)}, found {values!r}")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: expected each once, found {values!r}")
        if self.momentum == "exact" and "update" not in self.scores:
            raise ValueError('momentum="exact" is of the kind "update": expected it in scores')
        whitened = [kind for kind in ("whitened", "learning") if kind in self.scores]
        if self.refresh_every_n_steps is None:
            object.__setattr__(self, "refresh_every_n_steps", "auto" if whitened else 1)
        if whitened and self.projection_side is None:
            raise ValueError(
                f"scores of the kind {whitened[0]!r} whiten projected gradients: expected projection_side=K (R has K^4 "
                "numbers for each parameter; 8 to 16 is usual), found None"
            )
        for name in ("scores", "parameters", "breakdown"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "candidates", _numbered(hold("candidates", self.candidates, _Given)))

    @classmethod
    def of(cls, who: str, given: Mapping[str, Any]) -> TraceSettings:
        """Make settings of arguments by name.

        Args:
            who: What was called with them, for errors.
            given: The arguments.

        Raises:
            ValueError: On an unknown one, or one that isn't supported.
        """
        unknown = sorted(given.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise ValueError(f"{who}: expected settings among {sorted(cls.__dataclass_fields__)}, found {unknown[0]!r}")
        return cls(**given)

    @property
    def refresh_every(self) -> Every:
        """``refresh_every_n_steps``, or its default for these scores."""
        assert self.refresh_every_n_steps is not None
        return self.refresh_every_n_steps

    @cached_property
    def projection(self) -> Projection | None:
        """The projection of gradients, which keeps its random directions; None if products are exact."""
        return None if self.projection_side is None else Projection(self.projection_side, self.seed)

    @cached_property
    def rules(self) -> ScoringRules:
        """The rules by which scores are computed from steps."""
        return ScoringRules(
            tuple(self.scores),
            self.integration == "trapezoid",
            self.momentum == "exact",
            tuple(self.breakdown),
            self.projection,
            self.whitening,
            self.moments_tolerance,
        )

    def facts(self) -> dict[str, Any]:
        """Describe the main settings for the manifest."""
        given = self.candidates
        candidates = "all" if given is None else "of each query" if isinstance(given, Mapping) else len(given)
        return {
            "projection_side": self.projection_side,
            "integration": self.integration,
            "momentum": self.momentum if "update" in self.scores else None,
            "whitening": asdict(self.whitening) if self.rules.whitens else None,
            "candidates": candidates,
        }


def _numbered(candidates: Any) -> Candidates:
    """Convert candidates to numbers, if they were given by name."""
    if candidates is None:
        return None
    if isinstance(candidates, Mapping):
        return {_number(query): [_number(example) for example in of_query] for query, of_query in candidates.items()}
    return [_number(example) for example in candidates]


def _number(given_id: int | str) -> int:
    return stable_id(given_id) if isinstance(given_id, str) else int(as_ids([given_id], "candidates")[0])
