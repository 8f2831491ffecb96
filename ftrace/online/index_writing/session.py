"""The interface between a training loop and the index that is written of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.hooks import RemovableHandle

from ftrace.gradients import GradientCapture, leave_out
from ftrace.index import (
    GradientIndex,
    IndexSettings,
    begin_index,
    block_weights,
    read_manifest,
    write_examples,
)
from ftrace.online.hooks import is_compiled_anywhere, refuse_batch_statistics
from ftrace.online.index_writing.index_run import IndexRun, RunSettings
from ftrace.online.index_writing.progress import is_unneeded, note_progress, remove_index
from ftrace.online.index_writing.segment_schedule import SegmentSchedule
from ftrace.online.index_writing.segments import drop_rows_from
from ftrace.online.loop import TrainingLoop
from ftrace.online.messages import warn
from ftrace.online.optimizers.followed_optimizer import warn_of_missing_rates
from ftrace.online.output_folder import OutputFolder
from ftrace.online.precision import weights_by_dtype
from ftrace.online.processes import gather_objects, num_processes, process_rank
from ftrace.online.shared_ending import SharedEnding
from ftrace.online.texts.descriptions import Descriptions


class IndexSession:
    """An observer of a training loop that writes an index.

    Args:
        index: What rows are made of, and how they are stored.
        schedule: The steps that are written.
        settings: How the run is observed and checked.
        who: Whose messages these are.

    Attributes:
        run: The run; None before training.
        ending: How training ends by a signal or an error.
    """

    def __init__(self, index: IndexSettings, schedule: SegmentSchedule, settings: RunSettings, who: str) -> None:
        self.index = index
        self.schedule = schedule
        self.settings = settings
        self.who = who
        self.run: IndexRun | None = None
        self._capture: GradientCapture | None = None
        self._handles: list[RemovableHandle] = []
        self._restored: dict[str, Any] | None = None
        self._folder: OutputFolder | None = None  # of the last run, which may be continued
        self._descriptions: Descriptions | None = None  # of that run, likewise
        self.ending = SharedEnding()

    @property
    def running(self) -> IndexRun:
        """The run that is under way.

        Raises:
            RuntimeError: If there is none.
        """
        if self.run is None:
            raise RuntimeError(f"{self.who}: training has not begun")
        return self.run

    def before_training(self, module: nn.Module) -> None:
        """Attach to a compiled module, whose hooks can't change after its first call."""
        self.run = self._capture = None
        if is_compiled_anywhere(module):
            self._attach(module, None)

    def training_begins(self, loop: TrainingLoop, output_dir: Path | None, default_dir: Path, data: Any) -> None:
        """Attach to the module and its optimizer, and begin or continue an index.

        Args:
            output_dir: The index's folder; default: that of the checkpoint's index, or else ``default_dir``.
            default_dir: The folder of an index that is named nowhere.
            data: The fingerprint of the data; None without one.

        Raises:
            ValueError: If something in the module or the folder isn't supported.
        """
        self.ending.training_begins(loop)
        warn_of_missing_rates(loop.optimizers, self.who, "the index")
        optimizer = loop.optimizers[0]
        if self._capture is None:
            self._attach(loop.module, [p for group in optimizer.param_groups for p in group["params"]])
        capture = self._capture
        assert capture is not None
        if not capture.coverage.covered:
            raise ValueError(f"{self.who}: expected at least one parameter to be trained. {capture.coverage.summary()}")
        folder = self._find_folder(loop, output_dir, default_dir)
        assert self._descriptions is not None
        run = IndexRun(loop, capture, self.index, self.schedule, self.settings, folder, self._descriptions, self.who)
        self._begin_index(run, data)
        run.resume_segment()
        self._handles.append(optimizer.register_step_post_hook(run.end_step))
        self.run = run

    def batch_begins(self, batch: Any, batch_idx: int) -> None:
        """Stop if a signal has come, and begin to record."""
        self.ending.stop_together()
        self.running.begin_batch(batch, batch_idx)

    def _find_folder(self, loop: TrainingLoop, output_dir: Path | None, default_dir: Path) -> OutputFolder:
        restored, self._restored = self._restored, None
        if output_dir is None:  # a logger has a new folder for each call
            output_dir = Path(restored["output_dir"]) if restored else default_dir
        self.release()
        folder = OutputFolder(output_dir, self.who, "index")
        earlier, self._folder = self._folder, folder
        folder.claim()
        is_continued = bool(loop.step) and earlier is not None  # the same callback, in another call of fit
        if restored:
            folder.run_id = restored["run_id"]
        elif is_continued:
            assert earlier is not None
            folder.run_id = earlier.run_id
        if self._descriptions is None or not is_continued:
            self._descriptions = Descriptions(self.settings.describe, loop, self.who, self.settings.id_key)
        self._descriptions.loop = loop
        for entries in (restored or {}).get("texts", [])[process_rank() :: num_processes()]:
            self._descriptions.load(entries, folder.beside("state"))
        if (restored or is_continued) and not (folder.path / "index.json").exists():
            raise ValueError(
                f"{self.who}: training continues a run with an index, and there is none at {str(folder.path)!r}. Move "
                "it there, or name where it is: output_dir=..."
            )
        if loop.step and not restored and not is_continued:
            warn(
                f"{self.who}: training continues at step {loop.step}, from a checkpoint without an index: this index "
                "doesn't have the rows of earlier steps"
            )
        return folder

    def _begin_index(self, run: IndexRun, data: Any) -> None:
        facts = {
            "written_by": self.who,
            "output": "the training loss",
            "run_id": run.folder.run_id,
            "data": data,
            "weights": weights_by_dtype(run.loop.module),
        }
        manifest = run.folder.path / "index.json"
        if process_rank() == 0:
            if is_unneeded(run.folder.path, run.folder.run_id):
                run.loop.tell(
                    f"{self.who}: replaces the index in {run.folder.path}, whose run has ended without a checkpoint"
                )
                remove_index(run.folder.path)
            run.folder.refuse_another_run(read_manifest(run.folder.path) if manifest.exists() else None)
            if not manifest.exists():
                note_progress(run.folder.path, run.folder.run_id, "begun")
            begin_index(run.folder.path, self.index, run.loop.module, run.names, facts)
            drop_rows_from(run.folder.path, run.loop.step, self.index.dtype)
        gather_objects(None)  # a barrier: no process reads segments before rows have been dropped

    def _attach(self, module: nn.Module, optimized: list[Any] | None) -> None:
        patterns = self.index.features.parameters or tuple(block_weights(module))
        capture = GradientCapture(module, patterns, optimized, reads_graph=True)
        gaps = [gap.parameter for gap in capture.coverage.gaps]
        if gaps and self.settings.strict:
            refuse_batch_statistics(module, gaps, self.who)
            raise ValueError(
                f"{self.who} can't cover {len(gaps)} trained parameters. {capture.coverage.summary()}\n"
                f"{leave_out(gaps, patterns)}, or go on without with strict=False."
            )
        self._capture = capture
        capture.attach()

    # Its end

    def training_has_ended(self) -> None:
        """Close the last segment."""
        run = self.running
        run.finish()
        self._write_texts(run)
        self.ending.stop_together()
        self.detach()

    def _write_texts(self, run: IndexRun) -> None:
        if not any(run.folder.path.glob("segment-*")):
            warn(
                f"{self.who}: nothing was written: none of the {run.loop.step} steps of {run.loop.epoch} epochs is "
                f"among epochs={self.schedule.epochs}, steps={self.schedule.steps}"
            )
            return
        described = run.descriptions.gather()
        if process_rank() == 0:
            index = GradientIndex(run.folder.path)
            ids = np.unique(np.concatenate([np.asarray(segment.ids) for segment in index.segments]))
            texts = run.descriptions.texts(described, ids).examples
            if texts is not None:
                write_examples(run.folder.path, texts)
            note_progress(run.folder.path, run.folder.run_id, "finished")
            size = sum(file.stat().st_size for file in run.folder.path.glob("segment-*/*"))
            run.loop.tell(
                f"{self.who}: {index.num_rows:,} rows of {index.size:,} numbers in {len(index.segments)} segments, "
                f"{size / 2**20:,.0f} MiB: {run.folder.path}. Ask it with ftrace search --index {run.folder.path}"
            )

    @property
    def waits_to_be_closed(self) -> bool:
        """Whether there is a checkpoint's index to close although nothing is left to train.

        Such a run was killed after its last checkpoint and before its last segment was closed.
        """
        return self._restored is not None

    def training_has_failed(self) -> None:
        """Write buffered rows to disk."""
        try:
            with self.ending.failing():
                if self.run is not None:
                    self.run.flush()
        finally:
            self._detach_hooks()  # the loop puts back the handlers of signals once it has ended, too

    def detach(self) -> None:
        """Remove all hooks and handlers of signals, and let other runs write to the folder."""
        self.ending.restore()
        self._detach_hooks()

    def _detach_hooks(self) -> None:
        self.release()
        if self._capture is not None:
            self._capture.detach()
            self._capture = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def release(self) -> None:
        """Let other runs write to the folder."""
        if self._folder is not None:
            self._folder.release()

    # State

    def state(self) -> dict[str, Any]:
        """Write buffered rows to disk, and return the checkpoint's entry: none if other processes are gone."""
        if self._folder is None:
            return {}
        if self.ending.is_alone:
            warn(f"{self.who}: a checkpoint was saved without its index, since other processes have failed")
            return {}
        if self.run is not None:
            self.run.flush()
        if process_rank() == 0:
            note_progress(self._folder.path, self._folder.run_id, "in a checkpoint")
        entry = {"version": 1, "run_id": self._folder.run_id, "output_dir": str(self._folder.path)}
        assert self._descriptions is not None
        texts = self._descriptions.save(self._folder.beside("state"))
        return {**entry, "texts": gather_objects(texts)}

    def load(self, state: dict[str, Any]) -> None:
        """Remember the entry of a checkpoint, whose index is continued as soon as training begins."""
        self._restored = state or None
