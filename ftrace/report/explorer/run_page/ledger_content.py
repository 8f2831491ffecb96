"""What a report shows of a run's ledger: the summary, and what made the queries' losses fall by stretch of training."""

from __future__ import annotations

from collections.abc import Sequence

from ftrace.report.explorer.format import LedgerPage
from ftrace.report.explorer.short_numbers import rounded
from ftrace.report.ledger_stretches import by_stretches
from ftrace.scores import ScoreStore

_DIGITS = 4


def ledger_content(stores: Sequence[ScoreStore]) -> LedgerPage | None:
    """Return the ledger of the first store that has one; None if none has.

    A ledger that can't be read is no error: the sentence says so.

    Args:
        stores: The stores of a report.
    """
    with_ledgers = [store for store in stores if store.has_ledger]
    if not with_ledgers:
        return None
    store = with_ledgers[0]
    try:
        ledger = store.ledger
    except ValueError as error:
        reason = str(error).replace(str(store.path), store.path.name)
        return {"sentence": f"The ledger can't be read: {reason}", "doubts": [], "steps": [], "actual": [],
                "accounts": []}  # fmt: skip
    if ledger is None or not ledger.actual.size:
        return None
    sentence = str(ledger.summary())
    doubts = ledger.doubts()
    described = store.manifest.get("ledger")
    if isinstance(described, dict) and described.get("balanced") is False:
        worst = float(described.get("worst_imbalance") or 0)
        doubts.append(f"The books don't balance: accounts are off by up to {worst:.1%} of an interval")
    others = [other.path.name for other in with_ledgers[1:]]
    if others:
        doubts.append(f"This is the ledger of {store.path.name}. Not shown: that of {', '.join(others)}")
    stretches = by_stretches(ledger)
    return {
        "sentence": f"{sentence[:1].upper()}{sentence[1:]}.",
        "doubts": doubts,
        "steps": stretches.edges.tolist(),
        "actual": rounded(stretches.actual, _DIGITS),
        "accounts": [{"name": name, "values": rounded(values, _DIGITS)} for name, values in stretches.accounts.items()],
    }
