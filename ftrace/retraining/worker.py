"""One of several processes that retrain: reads what to train from its input, a line each, and says when it is done.

    python -m ftrace.retraining.worker RUN FOLDER BUDGET

It ends when its input does, as it does when whoever started it is killed.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from ftrace.retraining.retrainer import Retrainer
from ftrace.retraining.work import Retraining, retrain
from ftrace.runs import Run


def main(run: str, folder: str, budget: str) -> None:
    """Retrain until there is nothing more to do."""
    assert budget in ("epochs", "steps")
    replies = sys.stdout
    with redirect_stdout(sys.stderr):  # what is printed elsewhere is not taken for a reply
        retrainer = Retrainer(Run(folder=run), budget)  # type: ignore[arg-type]
        for line in sys.stdin:
            asked = json.loads(line)
            one = Retraining(asked["name"], tuple(asked["left_out"]), asked["order_seed"])
            retrain(retrainer, one, Path(folder))
            print(one.name, file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
