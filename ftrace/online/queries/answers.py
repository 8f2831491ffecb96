"""The record of when each query was right, of a run that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ftrace.online.processes import of_first_process
from ftrace.scores import AnswerRecord
from ftrace.scores.answer_record import RIGHT, UNKNOWN


class AnswerKeeper:
    """What is known of when each query was right: the store's record and the breakdown "learned" come from here.

    Attributes:
        steps: The steps before which queries were asked, ascending.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._counts: list[int] = []  # queries that there were at each step: others have been added since
        self._right = bytearray()  # one row after another, in one block of memory that grows
        self._ever = torch.zeros(0, dtype=torch.bool)

    def add(self, step: int, right: Tensor | None) -> None:
        """Take the queries' answers at one step, as process 0 has them. All processes must call it.

        Args:
            step: The next optimizer step; if it is the last one again, its answers are replaced.
            right: ``[Q]`` bool; None if there is no way to know.
        """
        if right is None:
            return
        self._append(step, of_first_process(right.to(torch.int8)))

    def _append(self, step: int, right: Tensor) -> None:
        right = right.cpu()
        if self.steps and self.steps[-1] == step:
            del self._right[len(self._right) - self._counts.pop() :]
            self.steps.pop()
        self.steps.append(step)
        self._counts.append(len(right))
        self._right += right.numpy().tobytes()
        self._ever = self.ever_right(len(right)) | (right == RIGHT)

    def ever_right(self, count: int) -> Tensor:
        """Tell which of the first ``count`` queries were right at some step so far, ``[count]`` bool."""
        missing = count - len(self._ever)
        return torch.cat([self._ever, self._ever.new_zeros(missing)]) if missing > 0 else self._ever

    def record(self, query_ids: np.ndarray) -> AnswerRecord | None:
        """Return the record so far, unknown of queries before they were added; None if nobody can tell who is right."""
        if not self.steps:
            return None
        right = np.full((len(self.steps), len(query_ids)), UNKNOWN, np.int8)
        values, begin = np.frombuffer(bytes(self._right), np.int8), 0
        for row, count in zip(right, self._counts, strict=True):
            row[:count] = values[begin : begin + count]
            begin += count
        return AnswerRecord(self.steps, query_ids, right)

    def state(self) -> dict[str, Any]:
        """Return all state, as numbers and tensors."""
        right = torch.from_numpy(np.frombuffer(bytes(self._right), np.int8).copy())
        return {"steps": list(self.steps), "counts": list(self._counts), "right": right, "ever": self._ever}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.steps, self._counts = list(state["steps"]), list(state["counts"])
        self._right = bytearray(state["right"].cpu().numpy().tobytes())
        self._ever = state["ever"].cpu()

    def load_earlier(self, shared: Mapping[str, Any]) -> None:
        """Restore what a state of earlier versions knows: the ends of the ledger's intervals, and who was ever right.

        Who was ever right, but not at the end of any interval, was right when it was first asked.
        """
        ever, last, ledger = shared["learned"], shared["last"], shared["ledger"]
        if ever is None:
            return
        rows = ledger["rows"] if ledger else []
        if not rows:
            self._append(last.step, last.learned.to(torch.int8))
        else:
            steps = [int(rows[0]["step"]), *(int(row["next_step"]) for row in rows)]
            right = torch.full((len(steps), len(ever)), UNKNOWN, dtype=torch.int8)
            for place, row in enumerate(rows, 1):
                right[place, : len(row["learned"])] = row["learned"].nan_to_num(UNKNOWN).to(torch.int8)
            first_known = (right != UNKNOWN).int().argmax(0)
            for query in (ever.cpu() & ~(right == RIGHT).any(0)).nonzero().flatten().tolist():
                right[max(0, int(first_known[query]) - 1), query] = RIGHT
            for step, of_step in zip(steps, right, strict=True):
                self._append(step, of_step)
        self._ever = ever.cpu()
