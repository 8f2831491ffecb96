"""One of several processes that retrain. It reads one retraining a line from its input, and answers when it is done.

    python -m ftrace.retraining.worker RUN FOLDER BUDGET [trust]

It ends when its input ends, which also happens if its parent process is killed.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from ftrace.retraining.retrainer import Retrainer
from ftrace.retraining.work import Retraining, retrain
from ftrace.runs import Run


def main(run: str, folder: str, budget: str, trust: str = "") -> None:
    """Retrain until the input ends."""
    assert budget in ("epochs", "steps")
    replies = sys.stdout
    with redirect_stdout(sys.stderr):  # so that other output is not taken for a reply
        retrainer = Retrainer(Run(run, trust=trust == "trust"), budget)  # type: ignore[arg-type]
        for line in sys.stdin:
            asked = json.loads(line)
            retraining = Retraining(asked["name"], tuple(asked["left_out"]), asked["order_seed"])
            retrain(retrainer, retraining, Path(folder))
            print(retraining.name, file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
