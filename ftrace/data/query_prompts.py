"""Queries of a data set as prompts for causal tracing."""

from __future__ import annotations

from ftrace.data.fact_data import FactData
from ftrace.data.fact_prompts import FactPrompt
from ftrace.data.text import split_sentinel


def prompts_of_queries(data: FactData) -> list[FactPrompt]:
    """Turn the queries of a data set into prompts, in order.

    A query whose subject the data don't know gets an empty one, and is refused when it is tokenized.

    Args:
        data: Must be set up.

    Raises:
        RuntimeError: If it has not.
    """
    if data.tokenizer is None:
        raise RuntimeError("expected prepare_data() and setup() to have run before prompts are asked for")
    prompts = []
    for row in data.query_rows:
        answer = split_sentinel(row["targets_pretokenized"])[1].strip()
        prompts.append(
            FactPrompt(
                f"query-{row['query_id']}",
                row["inputs_pretokenized"],
                data.subject_of_query(row) or "",
                tuple(dict.fromkeys([answer, *row["answers"]])),
                fact=row["fact"],
                query_id=row["query_id"],
                targets=row["targets_pretokenized"],
            )
        )
    return prompts
