"""The training step on one batch, run as often as it takes, with some examples' inputs exchanged for others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ftrace.gradients import Examples, ExchangeError, GradientCapture, Key, LayoutBook, Rehearsal
from ftrace.online.batches import batches_in
from ftrace.online.loop import TrainingLoop
from ftrace.online.rehearsal.exchange import Inputs, Place, find_inputs, outline, rows_in
from ftrace.online.rehearsal.quiet_step import QuietStep
from ftrace.online.restore.random_state import RandomState


class TrialSteps:
    """Training steps that are tried out, on one batch after the other.

    Args:
        loop: The training loop.
        id_key: The batch's key of the examples' ids.
        who: Whose messages these are.

    Attributes:
        passes: Forward and backward passes that rehearsals have run.
    """

    def __init__(self, loop: TrainingLoop, id_key: str, who: str) -> None:
        self.loop = loop
        self.id_key = id_key
        self.who = who
        self.passes: Counter[str] = Counter()
        self._fixed: set[tuple[int, Place]] = set()  # inputs that can't be exchanged, by dataloader
        self._now: tuple[Any, int, Examples, RandomState] | None = None
        self._requires_grad: list[tuple[nn.Parameter, bool]] = []

    def begin(self, batch: Any, batch_idx: int, examples: Examples) -> None:
        """Another batch is next.

        Args:
            batch: The batch.
            batch_idx: Its index.
            examples: In it.
        """
        self._now = outline(batch), batch_idx, examples, RandomState()
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in self.loop.module.parameters()]

    def rehearsal(
        self, inputs: Sequence[Inputs], capture: GradientCapture, book: LayoutBook, again: Collection[Key]
    ) -> Rehearsal:
        """A rehearsal of the step in which these inputs are exchanged; the rest as :class:`Rehearsal` has it."""
        assert self._now is not None
        loose = any(one.loose for one in inputs)
        return Rehearsal(capture, self.step(inputs), self._now[2], book, loose, again)

    def step(self, inputs: Sequence[Inputs]) -> QuietStep:
        """The step in which these inputs are exchanged."""
        assert self._now is not None
        batch, batch_idx, _, begins = self._now
        return QuietStep(self.loop, batch, batch_idx, inputs, self.id_key, begins, self._requires_grad)

    def rows(self) -> dict[Place, Tensor]:
        """The batch's tensors that hold examples, these first, by place."""
        assert self._now is not None
        batch, _, examples, _ = self._now
        return rows_in(batch, examples.total)

    def inputs(self) -> list[Inputs]:
        """What can be exchanged, by dataloader.

        Raises:
            ValueError: If a batch has nothing beside its ids that may hold examples.
        """
        assert self._now is not None
        batch, _, examples, _ = self._now
        several = batches_in(batch, self.id_key)
        counts = examples.loaders or (examples.total,)
        batches = [batch] if several is None else list(several.values())
        counts = tuple(count for count in counts if count) if several is not None else counts
        found = [find_inputs(one, count, (self.id_key,)) for one, count in zip(batches, counts, strict=True)]
        found = [one.without([p for i, p in self._fixed if i == index]) for index, one in enumerate(found)]
        for inputs in found:
            if not inputs.axes:
                shapes = {".".join(map(str, place)): shape for place, shape in inputs.shapes.items()}
                raise ValueError(
                    f'{self.who}: the batch has {inputs.count} ids under "{self.id_key}", and nothing else in it has '
                    f"an axis of {inputs.count}, so nobody can tell whose rows are whose: found {shapes}. Give an id "
                    "for each row that the loader yields: one for a row into which several texts are packed, and as "
                    "many as rows otherwise. Rows of one example, such as a pair, may have the same id"
                )
        return found

    def fix_what_fails(
        self, inputs: list[Inputs], error: ExchangeError, rehearsal_of: Callable[[Sequence[Inputs]], Rehearsal]
    ) -> None:
        """Leave those inputs as they are with which the step fails when examples have others', such as sizes.

        Args:
            inputs: Get those that are left.
            error: How the step fails.
            rehearsal_of: Makes a rehearsal in which some inputs are exchanged.

        Raises:
            ValueError: If none is left.
        """
        fails = set()
        for index, place in [(index, place) for index, one in enumerate(inputs) for place in one.axes]:
            alone = [
                one.without([other for other in one.axes if (number, other) != (index, place)])
                for number, one in enumerate(inputs)
            ]
            rehearsal = rehearsal_of(alone)
            with self.counted(rehearsal):
                if not rehearsal.can_exchange():
                    fails.add((index, place))
        left = [one.without([p for i, p in fails if i == index]) for index, one in enumerate(inputs)]
        if not fails or not all(set(one.axes) - {(self.id_key,)} for one in left):
            raise ValueError(
                f"{self.who}: the training step fails when some examples have others' inputs ({error}), so nobody can "
                "tell whose rows are whose. Give it tensors of one row an example, [examples, ...], padded, which fit "
                "together in any order"
            ) from error
        self._fixed |= fails
        inputs[:] = left

    @contextmanager
    def counted(self, rehearsal: Rehearsal) -> Iterator[None]:
        """While active, passes that a rehearsal runs are counted."""
        before = Counter(forward=rehearsal.forwards, backward=rehearsal.backwards)
        try:
            yield
        finally:
            self.passes += Counter(forward=rehearsal.forwards, backward=rehearsal.backwards) - before
