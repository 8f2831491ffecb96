"""Queries of a data set as prompts for causal tracing."""

from __future__ import annotations

from ftrace.data.chats import prompt_of_chat
from ftrace.data.fact_data import FactData
from ftrace.data.fact_prompts import FactPrompt
from ftrace.data.text import split_sentinel
from ftrace.data.turns import is_chat, seam


def prompts_of_queries(data: FactData) -> list[FactPrompt]:
    """Turn the queries of a data set into prompts, in order.

    A chat is rendered up to its last turn. A query whose subject the data don't know gets an empty one, and is refused
    when it is tokenized.

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
        text, between, in_chat = row["inputs_pretokenized"], None, False
        if row.get("turns") is not None and data.architecture == "decoder-only":
            turns, in_chat = row["turns"], is_chat(row["turns"])
            text, between = (prompt_of_chat(data.tokenizer, turns), "") if in_chat else (text, seam(turns))
        prompts.append(
            FactPrompt(
                f"query-{row['query_id']}",
                text,
                data.subject_of_query(row) or "",
                tuple(dict.fromkeys([answer, *row["answers"]])),
                fact=row["fact"],
                query_id=row["query_id"],
                targets=row["targets_pretokenized"],
                seam=between,
                is_chat=in_chat,
            )
        )
    return prompts
