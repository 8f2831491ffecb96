"""The smallest chunks that a report can have, in which a test puts what it is about."""

from __future__ import annotations

from typing import Any


def small_head(**fields: Any) -> dict[str, Any]:
    """Return a head without methods and queries, with some fields set."""
    queries = {
        "ids": [],
        "names": [],
        "prompts": [],
        "answers": [],
        "said": [],
        "said_right": [],
        "first_losses": [],
        "last_losses": [],
        "learned_steps": [],
        "states": [],
        "precisions": [],
        "disagreements": [],
        "facets": {},
    }
    run = {"folder": None, "evaluation": None, "ledger": None, "causal": None, "manifests": [], "claims": []}
    head = {
        "format": "ftrace-report",
        "version": 1,
        "made_by": "ftrace",
        "title": "A report",
        "fingerprint": "0",
        "is_redacted": False,
        "limits": [],
        "methods": [],
        "queries": queries,
        "example_chunks": [],
        "run": run,
    }
    return {**head, **fields}
