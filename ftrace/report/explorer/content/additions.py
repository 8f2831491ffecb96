"""What a report has beside scores and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ftrace.report.explorer.format import Causal, QueryChunk, RunPage, Tokens
from ftrace.views import Said

NO_RUN: RunPage = {"folder": None, "evaluation": None, "ledger": None, "causal": None, "manifests": [], "claims": []}


@dataclass(frozen=True)
class Additions:
    """What a report has beside scores and texts.

    Args:
        said: What the model answered, by the query's id; of others, what their texts say.
        tokens: Makes the tokens of a query, of its chunk that is done but for these; None: there are none.
        causal: Makes what causal tracing says of a query, likewise.
        run: The page of the run.
        limits: Sentences on what was left out before.
    """

    said: Mapping[int, Said] = field(default_factory=dict)
    tokens: Callable[[QueryChunk], Tokens | None] | None = None
    causal: Callable[[QueryChunk], Causal | None] | None = None
    run: RunPage = field(default_factory=lambda: NO_RUN)
    limits: Sequence[str] = ()
