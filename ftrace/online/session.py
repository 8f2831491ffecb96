"""The interface between a training loop and the traced run that observes it and writes a score store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ftrace.gradients import unsupported_step
from ftrace.online.checks.failures import SelfCheckError
from ftrace.online.hooks import Hooks
from ftrace.online.loop import TrainingLoop
from ftrace.online.manifest import manifest_of
from ftrace.online.messages import warn
from ftrace.online.optimizers.followed_optimizer import warn_of_missing_rates
from ftrace.online.output_folder import OutputFolder
from ftrace.online.processes import alone
from ftrace.online.queries.query_losses import find_answer_lengths, find_query_learned, find_query_losses
from ftrace.online.queries.query_pass import QueryPass
from ftrace.online.resume import RunState
from ftrace.online.run_memory import RunMemory, is_out_of_memory, make_block_memory
from ftrace.online.settings import TraceSettings
from ftrace.online.shared_ending import SharedEnding
from ftrace.online.store_writing import write_store
from ftrace.online.traced_run import TracedRun
from ftrace.online.undisturbed.modes import without_autocast
from ftrace.scores import ScoreStore, check_replaceable, show_command


class TraceSession:
    """An observer of a training loop.

    The loop calls each method when the event occurs that its name describes.

    Args:
        settings: What is traced, and how.
        queries: A DataLoader or Dataset of queries; None: the loop's own queries.
        query_losses: ``(module, batch) -> Tensor[B]``, in nats; default: the module's own, or a ready-made one.
        query_learned: ``(module, batch) -> Tensor[B]`` bool, whether each query is answered right; default: the
            module's own, if it has one.
        who: Whose messages these are.
        describe: Says the texts of examples and queries: a function of a batch, a data set, or a pair of data sets;
            default: the loop's own data.

    Attributes:
        run: The run; None before training begins.
        ending: How training ends by a signal or an error.
        incomplete_store: The folder of the scores of a training that didn't come to its end; None if there are none.
    """

    def __init__(
        self,
        settings: TraceSettings,
        queries: Any,
        query_losses: Callable[..., Tensor] | None,
        query_learned: Callable[..., Tensor] | None,
        who: str,
        describe: Any = None,
    ) -> None:
        self.settings = settings
        self.describe = describe
        self.queries = queries
        self.query_losses = query_losses
        self.query_learned = query_learned
        self.who = who
        self.run: TracedRun | None = None
        self._hooks = Hooks(
            settings.parameters, settings.projection, who, strict=settings.strict, all_of_queries=settings.ledger
        )
        self._state = RunState(who)
        self._added: list[Any] = []
        self.incomplete_store: Path | None = None
        self.ending = SharedEnding()
        self._folder: OutputFolder | None = None
        self._memory: RunMemory

    @property
    def running(self) -> TracedRun:
        """The run that is under way.

        Raises:
            RuntimeError: If there is none.
        """
        if self.run is None:
            raise RuntimeError(f"{self.who}: training has not begun")
        return self.run

    def add_queries(self, queries: Any) -> None:
        """Add queries, which are traced from the next batch on.

        Raises:
            ValueError: If training has not begun.
        """
        if self.run is None:
            raise ValueError(f"add_queries: expected training to be under way. Give the queries to {self.who} instead")
        self._added.append(queries)

    # Its beginning

    def before_training(self, module: nn.Module) -> None:
        """Attach to a compiled module, which may be called before training begins."""
        self.run = None
        self._hooks.attach_before_first_call(module)

    def training_begins(self, loop: TrainingLoop, output_dir: Path) -> None:
        """Attach to the module and its optimizers, and continue the scores of a checkpoint if there is one.

        Args:
            output_dir: The folder of the store.

        Raises:
            ValueError: If something in the loop, the module, its optimizers or the folder isn't supported.
        """
        settings = self.settings
        self.ending.training_begins(loop)
        if "dot" in settings.scores:
            warn_of_missing_rates(loop.optimizers, self.who, 'the kind "dot"')
        for optimizer in loop.optimizers if "update" in settings.scores else ():
            problem = unsupported_step(optimizer)
            if problem is not None:
                raise ValueError(
                    f'{self.who}: for scores of the kind "update" it must know what the optimizer does: {problem}. '
                    'Ask for "dot" and "cosine" alone'
                )
        self._folder = folder = OutputFolder(output_dir, self.who, "scores")
        folder.claim()
        queries = self._query_pass(loop)
        if not self._hooks.is_attached:
            self._hooks.attach(loop.module, loop.optimizers)
        blocks = make_block_memory(settings.store, folder.path.parent)
        run = TracedRun(loop, queries, settings, self._hooks, self.who, self.describe, blocks)
        self._memory = RunMemory(run, blocks, folder.path)
        self._memory.before_training()
        self._state.begin(run, folder, strict=settings.strict)
        run.descriptions.add_queries(queries)
        check_replaceable(self._incomplete_dir)
        self._refuse_another_run()
        if run.steps.first:
            warn(
                f"{self.who}: scores begin at step {run.steps.first}, earlier steps are not in them; they will be "
                f"written to {self._incomplete_dir}"
            )
        for optimizer in loop.optimizers:
            self._hooks.follow(loop, optimizer, self.optimizer_steps, self.optimizer_has_stepped)
        self.run = run

    def _query_pass(self, loop: TrainingLoop) -> QueryPass:
        settings = self.settings
        losses = self.query_losses or find_query_losses(loop.module)
        learned = self.query_learned or find_query_learned(loop.module)
        if "learned" in settings.breakdown and learned is None:
            raise ValueError(
                'breakdown="learned": there is no way to tell whether a query is right. Give the module a method '
                "learned(batch) -> Tensor[B] bool, or pass query_learned=(module, batch) -> Tensor[B]"
            )
        lengths = find_answer_lengths(loop.module, losses)
        return QueryPass(self.queries, losses, learned, lengths, settings.query_id_key, loop)

    # Batches and steps

    def batch_begins(self, batch: Any, batch_idx: int) -> None:
        """Stop if a signal has come, rehearse the step if that is due, and begin to record."""
        self.ending.stop_together()
        with self._memory.named():
            self.running.begin_batch(batch, batch_idx, self._added)

    def backward_begins(self, loss: Tensor) -> None:
        """Prepare for a backward pass over this loss."""
        if self.run is not None:
            with self._memory.named(), without_autocast(self.run.loop.device):
                self.run.before_backward(loss)

    def backward_has_ended(self) -> None:
        """Read what the backward pass has added to the gradients."""
        if self.run is not None:
            with self._memory.named(), without_autocast(self.run.loop.device):
                self.run.after_backward()
                self._memory.measure()

    def gradients_are_zeroed(self) -> None:
        """Forget contributions that no step has used, under automatic optimization."""
        self.running.discard_contributions()

    def optimizer_steps(self, optimizer: Optimizer) -> None:
        """Check and remember the gradients with which an optimizer is about to step."""
        with self._memory.named(), without_autocast(self.running.loop.device):
            self.running.begin_step(self.running.parameters.find(optimizer))

    def optimizer_has_stepped(self, optimizer: Optimizer) -> None:
        """Book the step that an optimizer has taken."""
        with self._memory.named():
            self.running.end_step(self.running.parameters.find(optimizer))

    def batch_has_ended(self) -> None:
        """Close the batch."""
        self.running.end_batch()

    # Its end

    def training_has_ended(self) -> None:
        """Write the store."""
        run = self.running
        self._state.remember(run)
        with self._memory.named():
            run.finish()
        run.rows.report_never_checked()
        self._write(complete=run.steps.first == 0)
        self.ending.stop_together()
        self.detach()

    @property
    def waits_to_be_closed(self) -> bool:
        """Whether there are a checkpoint's scores to write although nothing is left to train.

        Such a run was killed after its last checkpoint and before its store was written.
        """
        return self.run is None and bool(self._state.restored)

    def training_has_failed(self, exception: BaseException) -> None:
        """Write the scores so far, by this process alone, unless the scores themselves are wrong."""
        run = self.run
        try:
            with self.ending.failing():
                if (
                    run is not None
                    and self._hooks.is_attached
                    and run.steps.begun
                    and not isinstance(exception, SelfCheckError)
                ):
                    with alone():
                        self._state.remember(run)  # a checkpoint may still be saved
                        self._finish_with_what_is_left(run)
                        self._write(complete=False, alone=True)
        finally:
            self._detach_hooks()  # the loop puts back the handlers of signals once it has ended, too

    def checkpoints_are_saved(self) -> None:
        """Delete files for resuming that no checkpoint needs: no other will be saved."""
        if self.run is not None:
            self._state.delete_unneeded(self.run)

    def _finish_with_what_is_left(self, run: TracedRun) -> None:
        """Book the steps that wait; if memory has run out, as far as there is memory."""
        self._memory.release()
        try:
            run.scoring.finish()
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            warn(f"{self.who}: memory ran out, so steps since the last refresh are not in the scores")

    def detach(self) -> None:
        """Remove all hooks and handlers of signals, and let other runs write to the folder."""
        self._detach_hooks()
        self.ending.restore()

    def _detach_hooks(self) -> None:
        self._hooks.detach()
        if self._folder is not None:
            self._folder.release()

    # State

    def state(self) -> dict[str, Any]:
        """Write the state beside the user's checkpoint. All processes must call it.

        Returns:
            The checkpoint's entry: names and hashes of files. Nothing if other processes are gone, with their part.
        """
        if self.ending.is_alone:
            warn(f"{self.who}: a checkpoint was saved without scores, since other processes have failed")
            return {}
        return self._state.save(self.run)

    def load(self, state: dict[str, Any]) -> None:
        """Remember the entry of a checkpoint, from which to continue as soon as training begins."""
        self._state.restored = state

    # The store

    @property
    def _incomplete_dir(self) -> Path:
        assert self._folder is not None
        folder = self._folder.beside("incomplete")
        try:
            other = ScoreStore.open(folder).manifest.get("run_id")
        except (FileNotFoundError, ValueError):
            return folder
        run_id = self._folder.run_id
        return folder if other == run_id else folder.with_name(f"{folder.name}-{run_id[:8]}")

    def _refuse_another_run(self) -> None:
        """Refuse to overwrite the store of another run; an earlier one of the same run is replaced."""
        assert self._folder is not None
        check_replaceable(self._folder.path)
        try:
            manifest = dict(ScoreStore.open(self._folder.path).manifest)
        except (FileNotFoundError, ValueError):  # there is no store, such as in an empty folder
            return
        self._folder.refuse_another_run(manifest, f" ({manifest.get('steps', 'unknown')} steps)")

    def _complete_dir(self) -> Path:
        """Return the folder that the user named, unless something has come there that isn't this run's."""
        assert self._folder is not None
        try:
            self._refuse_another_run()
        except ValueError as error:  # copied there, or the disk knows no locks: these scores took a training
            folder = self._folder.beside(self._folder.run_id[:8])
            warn(f"{error}. That came there during training, so this run's scores go to {str(folder)!r}")
            return folder
        return self._folder.path

    def _write(self, *, complete: bool, alone: bool = False) -> None:
        run = self.running
        assert self._folder is not None
        # The folder that the user named never holds the scores of a part of a run.
        output_dir = self._complete_dir() if complete else self._incomplete_dir
        facts = {**manifest_of(run, self._folder.run_id, complete=complete), "memory": self._memory.needs.facts()}
        self._memory.release()
        with self._memory.named():
            store = write_store(output_dir, run, facts, alone=alone)
        self.incomplete_store = None if complete else output_dir
        if store is None:
            return
        doubts: dict[str, list[str]] = store.manifest["doubts"]
        if store.ledger is not None and len(store.ledger.steps):
            in_doubt = f" (in doubt: {', '.join(doubts)})" if doubts else ""
            run.loop.tell(f"{self.who}: {store.ledger.summary()}{in_doubt}. Scores: {show_command(output_dir)}")
        for sentences in doubts.values():
            for sentence in sentences:
                warn(f"{self.who}: {sentence}")
