"""The training step of the current batch, run in rehearsals with some examples' inputs exchanged for others'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ftrace.gradients import Documents, Examples, ExchangeError, GradientCapture, Key, LayoutBook, Rehearsal
from ftrace.online.batches import batches_in
from ftrace.online.loop import TrainingLoop
from ftrace.online.processes import gather_objects
from ftrace.online.rehearsal.exchange import Inputs, KeyPath, find_inputs, outline, rows_in
from ftrace.online.rehearsal.packed_rows import PackedBatches, packed_inputs, packed_rows_in
from ftrace.online.rehearsal.quiet_step import QuietStep
from ftrace.online.undisturbed.random_state import RandomState

_FACTOR, _MOST_FACTORS = 2.0**6, 8


class TrialSteps:
    """The training steps of rehearsals, on one batch after the other.

    Args:
        id_key: The key of the examples' ids in a batch.
        who: Whose messages these are.

    Attributes:
        passes: How many forward passes, and how many of them with backward passes, rehearsals have run.
        packed: Tells documents apart in batches of packed rows.
        documents: Those of the current batch; None where its examples are rows.
    """

    def __init__(self, loop: TrainingLoop, id_key: str | int, who: str) -> None:
        self.loop = loop
        self.id_key = id_key
        self.who = who
        self.passes: Counter[str] = Counter()
        self.packed = PackedBatches(id_key, who)
        self.documents: Documents | None = None
        self._fixed: set[tuple[int, KeyPath]] = set()  # inputs that can't be exchanged, by dataloader
        self._current: tuple[Any, int, Examples, RandomState] | None = None
        self._requires_grad: list[tuple[nn.Parameter, bool]] = []
        self._loss_factor = 1.0

    def begin(self, batch: Any, batch_idx: int, count: int, sizes: Sequence[int]) -> Examples:
        """Take the next batch.

        Args:
            batch_idx: Its index.
            count: The number of its ids.
            sizes: The sizes of the batches that it is made of; empty if there is only one dataloader.

        Returns:
            Its examples.

        Raises:
            ValueError: If rows are packed, and there are not as many documents as ids; or if packed rows come from
                several dataloaders.
        """
        self.documents = self._documents_of(batch, count, sizes)
        examples = Examples(count, tuple(sizes) if len(sizes) > 1 else (), self.documents)
        self._current = outline(batch), batch_idx, examples, RandomState()
        self._requires_grad = [(parameter, parameter.requires_grad) for parameter in self.loop.module.parameters()]
        return examples

    def _documents_of(self, batch: Any, count: int, sizes: Sequence[int]) -> Documents | None:
        several = batches_in(batch, self.id_key)
        if several is None:
            return self.packed.documents(batch, count)
        counts = [size for size in sizes if size]
        if any(self.packed.documents(*pair) is not None for pair in zip(several.values(), counts, strict=True)):
            raise ValueError(
                f"{self.who}: expected packed rows from one dataloader, found several. Give each row one id, so that "
                "rows are the examples; or mix the data sets in one dataloader"
            )
        return None

    def rehearsal(
        self, inputs: Sequence[Inputs], capture: GradientCapture, book: LayoutBook, again: Collection[Key]
    ) -> Rehearsal:
        """Make a rehearsal in which these inputs are exchanged; the other arguments are those of :class:`Rehearsal`."""
        assert self._current is not None
        loose = any(of_loader.loose for of_loader in inputs)
        return Rehearsal(capture, self.step(inputs), self._current[2], book, loose, again)

    def step(self, inputs: Sequence[Inputs]) -> QuietStep:
        """Make the step in which these inputs are exchanged."""
        assert self._current is not None
        batch, batch_idx, _, begins = self._current
        return QuietStep(
            self.loop, batch, batch_idx, inputs, self.id_key, begins, self._requires_grad, self._loss_factor
        )

    def fit_loss_scale(self, inputs: Sequence[Inputs]) -> None:
        """Find a factor with which the losses of this batch have finite gradients, if there is a loss scaler.

        A scaler begins with a scale that may be too large, skips steps whose gradients are not finite, and lowers it. A
        rehearsal with such gradients would find out nothing. All processes must call it.
        """
        self._loss_factor = 1.0
        if self.loop.loss_scale == 1:
            return
        wanted = [parameter for parameter in self.loop.module.parameters() if parameter.requires_grad]
        for _ in range(_MOST_FACTORS):
            finite: list[bool] = []

            def look(loss: Tensor, keeps: bool, finite: list[bool] = finite) -> None:
                grads = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=keeps or None)
                finite += [bool(grad.isfinite().all()) for grad in grads if grad is not None]

            self.step(inputs)(look)
            self.passes += Counter(forward=1, backward=1)
            if all(gather_objects(all(finite))):
                return
            self._loss_factor /= _FACTOR
        self._loss_factor = 1.0  # it isn't the scale's fault

    def rows(self) -> dict[KeyPath, Tensor]:
        """Return the batch's tensors that hold examples, by key path, with the axis of the examples first."""
        assert self._current is not None
        batch, _, examples, _ = self._current
        if examples.documents is not None:
            return packed_rows_in(batch, examples.documents)
        return rows_in(batch, examples.total)

    def inputs(self) -> list[Inputs]:
        """Return the inputs that can be exchanged, by dataloader.

        Raises:
            ValueError: If a batch has nothing except its ids that may hold examples.
        """
        assert self._current is not None
        batch, _, examples, _ = self._current
        if examples.documents is not None:
            return [self._packed_inputs(batch, examples.documents)]
        several = batches_in(batch, self.id_key)
        counts = examples.loaders or (examples.total,)
        batches = [batch] if several is None else list(several.values())
        counts = tuple(count for count in counts if count) if several is not None else counts
        sized = zip(batches, counts, strict=True)
        inputs = [find_inputs(of_loader, count, (self.id_key,)) for of_loader, count in sized]
        inputs = [found.without([path for i, path in self._fixed if i == index]) for index, found in enumerate(inputs)]
        for of_loader in inputs:
            if not of_loader.axes:
                shapes = {".".join(map(str, path)): shape for path, shape in of_loader.shapes.items()}
                raise ValueError(
                    f'{self.who}: the batch has {of_loader.count} ids under "{self.id_key}", but nothing else in it '
                    f"has an axis of size {of_loader.count}, so there is no telling whose rows are whose: found "
                    f"{shapes}. Give an id for each row that the loader yields: one for a row into which several texts "
                    "are packed, and as many as rows otherwise. Rows of one example, such as a pair, may have the same "
                    "id. Or give an id for each text of packed rows, told apart by document_ids, or by position_ids "
                    "that begin anew"
                )
        return inputs

    def _packed_inputs(self, batch: Any, documents: Documents) -> Inputs:
        inputs = packed_inputs(batch, documents).without([path for _, path in self._fixed])
        if not inputs.axes:
            shapes = {".".join(map(str, path)): shape for path, shape in inputs.shapes.items()}
            rows, tokens = documents.owners.shape
            raise ValueError(
                f'{self.who}: the batch has {inputs.count} ids under "{self.id_key}" for the documents of packed rows, '
                "but nothing in it holds their tokens, so there is no telling what depends on which of them: expected "
                f"a tensor [{rows}, {tokens}, ...], found {shapes}. Let the batch hold the input_ids"
            )
        return inputs

    def fix_what_fails(
        self, inputs: list[Inputs], error: ExchangeError, rehearsal_of: Callable[[Sequence[Inputs]], Rehearsal]
    ) -> None:
        """Find the inputs, such as sizes, whose exchange makes the step fail, and exchange them no more.

        Args:
            inputs: The inputs that are exchanged; changed in place.
            error: How the step fails.
            rehearsal_of: Makes a rehearsal in which some inputs are exchanged.

        Raises:
            ValueError: If no inputs are left.
        """
        fails = set()
        for index, path in [(index, path) for index, of_loader in enumerate(inputs) for path in of_loader.axes]:
            alone = [
                of_loader.without([other for other in of_loader.axes if (number, other) != (index, path)])
                for number, of_loader in enumerate(inputs)
            ]
            rehearsal = rehearsal_of(alone)
            with self.counted(rehearsal):
                if not rehearsal.can_exchange():
                    fails.add((index, path))
        left = [of_loader.without([path for i, path in fails if i == index]) for index, of_loader in enumerate(inputs)]
        if not fails or not all(set(of_loader.axes) - {(self.id_key,)} for of_loader in left):
            raise ValueError(
                f"{self.who}: the training step fails when some examples have others' inputs ({error}), so there is no "
                "telling whose rows are whose. Give it padded tensors with one row per example, [examples, ...], which "
                "fit together in any order"
            ) from error
        self._fixed |= fails
        inputs[:] = left

    @contextmanager
    def counted(self, rehearsal: Rehearsal) -> Iterator[None]:
        """Count the passes that a rehearsal runs while active."""
        before = Counter(forward=rehearsal.forwards, backward=rehearsal.backwards)
        try:
            yield
        finally:
            self.passes += Counter(forward=rehearsal.forwards, backward=rehearsal.backwards) - before
