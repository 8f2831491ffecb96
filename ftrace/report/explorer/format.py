"""What a report holds, as types: format "ftrace-report", version 1. ``app/format.d.ts`` says what each field means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

FORMAT: Literal["ftrace-report"] = "ftrace-report"
VERSION: Literal[1] = 1


class Head(TypedDict):
    """See ``Head`` in ``app/format.d.ts``."""

    format: Literal["ftrace-report"]
    version: Literal[1]
    made_by: str
    title: str
    fingerprint: str
    is_redacted: bool
    limits: Sequence[str]
    methods: Sequence[Method]
    queries: QueryList
    example_chunks: Sequence[str]
    run: RunPage


class Method(TypedDict):
    """See ``Method`` in ``app/format.d.ts``."""

    title: str
    kind: str
    unit: str
    doubts: Sequence[str]
    is_complete: bool
    num_examples: int | None
    has_opponents: bool
    axes: Mapping[str, Sequence[str]]


class QueryList(TypedDict):
    """See ``QueryList`` in ``app/format.d.ts``."""

    ids: Sequence[str]
    names: Sequence[str | None]
    prompts: Sequence[str | None]
    answers: Sequence[str | None]
    said: Sequence[str | None]
    said_right: Sequence[bool | None]
    first_losses: Sequence[float | None]
    last_losses: Sequence[float | None]
    learned_steps: Sequence[int | None]
    states: Sequence[str | None]
    precisions: Sequence[Sequence[float | None]]
    best_precisions: Sequence[float | None]
    disagreements: Sequence[float | None]
    facets: Mapping[str, Sequence[str | None]]


class QueryChunk(TypedDict):
    """See ``QueryChunk`` in ``app/format.d.ts``."""

    id: str
    name: str | None
    prompt: str | None
    cut: int
    answer: str | None
    accepted: Sequence[str]
    said: Said | None
    properties: Sequence[tuple[str, str]]
    loss: Loss | None
    answered: Answered | None
    warnings: Sequence[str]
    examples: Sequence[Example]
    lists: Sequence[Lists | None]
    parts: Sequence[Parts]
    tokens: Tokens | None
    causal: Causal | None


class Said(TypedDict):
    """See ``Said`` in ``app/format.d.ts``."""

    text: str | None
    probability: float | None
    right: bool | None
    snapshot: str


class Loss(TypedDict):
    """See ``Loss`` in ``app/format.d.ts``."""

    steps: Sequence[int]
    values: Sequence[float | None]


class Answered(TypedDict):
    """See ``Answered`` in ``app/format.d.ts``."""

    state: Literal["known", "learned", "learned again", "forgotten", "never"]
    step: int
    text: str


class Example(TypedDict):
    """See ``Example`` in ``app/format.d.ts``."""

    id: str
    name: str | None
    text: str | None
    cut: int
    answer: str | None
    states_fact: bool | None
    kind: Literal["same subject", "same object", "same relation", "other"] | None
    shared: Sequence[tuple[int, int]]
    places: Sequence[Place | None]
    alike: int


class Place(TypedDict):
    """See ``Place`` in ``app/format.d.ts``."""

    rank: int | None
    rank_from_below: int | None
    ties: int
    score: float | None
    share: float | None


class Lists(TypedDict):
    """See ``Lists`` in ``app/format.d.ts``."""

    candidates: int | None
    positive: int | None
    negative: int | None
    proponents: Sequence[int]
    opponents: Sequence[int] | None
    more_proponents_like_last: int
    more_opponents_like_last: int


class Parts(TypedDict):
    """See ``Parts`` in ``app/format.d.ts``."""

    method: int
    axis: str
    examples: Sequence[int]
    values: Sequence[Sequence[float | None]]


class TokenSequence(TypedDict):
    """See ``TokenSequence`` in ``app/format.d.ts``."""

    name: str
    tokens: Sequence[str]
    values: Sequence[float | None]


class ExampleTokens(TypedDict):
    """See ``ExampleTokens`` in ``app/format.d.ts``."""

    example: int
    total: float | None
    sequences: Sequence[TokenSequence]


class Tokens(TypedDict):
    """See ``Tokens`` in ``app/format.d.ts``."""

    method: int
    snapshot: str
    note: str
    examples: Sequence[ExampleTokens]


class CausalMediator(TypedDict):
    """See ``CausalMediator`` in ``app/format.d.ts``."""

    title: str
    effects: Sequence[Sequence[float | None]]
    readout: Sequence[tuple[int, int]]
    peak: tuple[int, int] | None


class CausalStack(TypedDict):
    """See ``CausalStack`` in ``app/format.d.ts``."""

    name: str
    tokens: Sequence[str]
    subject: tuple[int, int]
    mediators: Sequence[CausalMediator]


class CausalProfile(TypedDict):
    """See ``CausalProfile`` in ``app/format.d.ts``."""

    layers: Sequence[str]
    effects: Sequence[float | None]
    scores: Sequence[float | None]
    correlation: float | None
    notes: Sequence[str]


class Causal(TypedDict):
    """See ``Causal`` in ``app/format.d.ts``."""

    status: Literal["traced", "wrong", "refused"]
    reason: str
    clean: float | None
    corrupted: float | None
    stacks: Sequence[CausalStack]
    profile: CausalProfile | None


class ExampleChunk(TypedDict):
    """See ``ExampleChunk`` in ``app/format.d.ts``."""

    examples: Sequence[ExamplePage]


class ExamplePage(TypedDict):
    """See ``ExamplePage`` in ``app/format.d.ts``."""

    id: str
    name: str | None
    text: str | None
    cut: int
    answer: str | None
    methods: Sequence[ExampleTotals | None]


class ExampleTotals(TypedDict):
    """See ``ExampleTotals`` in ``app/format.d.ts``."""

    helped: int | None
    hurt: int | None
    sum_helped: float | None
    sum_hurt: float | None
    most_helped: Sequence[tuple[int, float | None]]
    most_hurt: Sequence[tuple[int, float | None]]


class CausalPage(TypedDict):
    """See ``CausalPage`` in ``app/format.d.ts``."""

    facts: Sequence[tuple[str, str]]


class ManifestPage(TypedDict):
    """See ``ManifestPage`` in ``app/format.d.ts``."""

    title: str
    facts: Sequence[tuple[str, str]]


class Claim(TypedDict):
    """See ``Claim`` in ``app/format.d.ts``."""

    claim: str
    command: str


class RunPage(TypedDict):
    """See ``RunPage`` in ``app/format.d.ts``."""

    folder: str | None
    evaluation: Evaluation | None
    ledger: LedgerPage | None
    causal: CausalPage | None
    manifests: Sequence[ManifestPage]
    claims: Sequence[Claim]


class EvaluationCell(TypedDict):
    """See ``EvaluationCell`` in ``app/format.d.ts``."""

    mean: float | None
    low: float | None
    high: float | None


class EvaluationRow(TypedDict):
    """See ``EvaluationRow`` in ``app/format.d.ts``."""

    name: str
    cells: Sequence[EvaluationCell]


class Evaluation(TypedDict):
    """See ``Evaluation`` in ``app/format.d.ts``."""

    title: str
    metrics: Sequence[str]
    rows: Sequence[EvaluationRow]
    ceiling: Sequence[float | None]
    notes: Sequence[str]


class LedgerAccount(TypedDict):
    """See ``LedgerAccount`` in ``app/format.d.ts``."""

    name: str
    values: Sequence[float | None]


class LedgerPage(TypedDict):
    """See ``LedgerPage`` in ``app/format.d.ts``."""

    sentence: str
    doubts: Sequence[str]
    steps: Sequence[int]
    actual: Sequence[float | None]
    accounts: Sequence[LedgerAccount]
