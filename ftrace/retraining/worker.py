"""One of several processes that retrain. It reads one retraining a line from its input, and answers when it is done.

    python -m ftrace.retraining.worker RUN FOLDER BUDGET [trust]

It ends when its input ends, also in the middle of a retraining: its parent process has been killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from queue import Queue

from ftrace.retraining.retrainer import Retrainer
from ftrace.retraining.work import Retraining, retrain
from ftrace.runs import Run


def main(run: str, folder: str, budget: str, trust: str = "") -> None:
    """Retrain until the input ends."""
    assert budget in ("epochs", "steps")
    replies = sys.stdout
    with redirect_stdout(sys.stderr):  # so that other output is not taken for a reply
        retrainer = Retrainer(Run(run, trust=trust == "trust"), budget)  # type: ignore[arg-type]
        lines: Queue[str] = Queue()
        threading.Thread(target=_listen, args=(lines,), daemon=True).start()
        while line := lines.get():
            asked = json.loads(line)
            retraining = Retraining(asked["name"], tuple(asked["left_out"]), asked["order_seed"])
            retrain(retrainer, retraining, Path(folder))
            lines.task_done()
            print(retraining.name, file=replies, flush=True)


def _listen(lines: Queue[str]) -> None:
    """Pass the lines of the input on, and an empty one at its end."""
    for line in sys.stdin:
        lines.put(line)
    if lines.unfinished_tasks:  # nobody waits for what is being done
        os._exit(1)
    lines.put("")


if __name__ == "__main__":
    main(*sys.argv[1:])
