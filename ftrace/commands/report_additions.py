"""What a report has beside scores and texts: answers, tokens, causal traces and the run's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ftrace.commands.free_cores import use_free_cores
from ftrace.commands.said import said_in_run
from ftrace.commands.sources import Opened
from ftrace.report.explorer.content.additions import Additions
from ftrace.report.explorer.content.causal_content import CausalContent
from ftrace.report.explorer.content.ranked_queries import RankedQueries
from ftrace.report.explorer.content.token_content import tokens_maker
from ftrace.report.explorer.format import Causal, QueryChunk, Tokens
from ftrace.report.explorer.run_page.run_page import make_run_page
from ftrace.runs import Run
from ftrace.scores import AnswerRecord
from ftrace.views import Said, Source, StoreSource

if TYPE_CHECKING:  # it imports torch
    from ftrace.attribution import MadeTokens


def additions_of(
    opened: Opened, ranked: RankedQueries, limits: Sequence[str], tokens: int, *, is_redacted: bool = False
) -> Additions:
    """Find what is known beside scores and texts.

    Args:
        opened: What the report is of.
        ranked: Its queries, ranked by all methods.
        limits: What was left out before, a sentence each.
        tokens: For how many of each query's strongest examples scores are told token by token; 0: for none.
        is_redacted: Whether reasons are left out, which may name texts and paths.
    """
    run = opened.run
    said, problem = _said(run, ranked, opened.trust)
    problems = (
        [] if problem is None else [f"The model could not be asked what it answers{'' if is_redacted else problem}."]
    )
    made, reasons = _tokens_by(ranked, run, tokens, opened.trust)
    return Additions(
        said=said,
        tokens=made,
        causal=None if run is None else _causal_of(run),
        run=make_run_page(opened.sources, run, opened.results),
        limits=[*limits, *problems, *reasons],
    )


def _said(run: Path | None, ranked: RankedQueries, trust: bool) -> tuple[dict[int, Said], str | None]:
    """Return what the run's model answers to the queries whose texts don't say it; and why it could not be asked."""
    not_said = [query for query, row in ranked.rows.items() if row.get("said") is None]
    if run is None or not not_said:
        return {}, None
    try:
        return said_in_run(run, not_said, trust), None
    except (ValueError, OSError) as error:  # the data is elsewhere, for example
        return {}, f": {str(error).removesuffix('.')}"


def _causal_of(run: Path) -> Callable[[QueryChunk], Causal | None]:
    traces = CausalContent(run)
    return lambda chunk: traces.of(int(chunk["id"]))


def _tokens_by(
    ranked: RankedQueries, run: Path | None, count: int, trust: bool
) -> tuple[Callable[[QueryChunk], Tokens | None] | None, Sequence[str]]:
    """Divide the scores of the first method's strongest examples over their tokens.

    Returns:
        What makes the tokens of a query; and why there are none, or not all.
    """
    if not count:
        return None, []
    made = _made_tokens(run, _answers(ranked.sources), ranked.strongest(0, count), trust)
    return tokens_maker(made.by_query, 0), [f"{reason.removesuffix('.')}." for reason in made.reasons]


def _made_tokens(
    run: Path | None, answers: AnswerRecord | None, examples: dict[int, list[int]], trust: bool
) -> MadeTokens:
    from ftrace.attribution import MadeTokens, make_tokens

    if run is None:
        return make_tokens(None, answers, examples)
    use_free_cores()
    try:
        return make_tokens(Run(run, trust), answers, examples)
    except ValueError as error:  # the run of a module that is no FactLM, or isn't trusted
        return MadeTokens(reasons=[f"Scores aren't told token by token: {error}"])


def _answers(sources: Sequence[Source]) -> AnswerRecord | None:
    return next((s.store.answers for s in sources if isinstance(s, StoreSource) and s.store.answers is not None), None)
