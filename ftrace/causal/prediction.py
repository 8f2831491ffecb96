"""Tracing of many prompts under Lightning, prompt by prompt, in one or several processes, resumable."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from ftrace.arguments import Name, Positive, checked
from ftrace.causal.prompt_trace import PromptTrace
from ftrace.causal.trace_files import write_trace
from ftrace.causal.trace_folders import TraceFolder, corruption_of
from ftrace.causal.trace_task import TraceTask
from ftrace.causal.tracer import CausalTracer, check_state
from ftrace.data import FactPrompt, TokenizedPrompt
from ftrace.launched_processes import ending_launched, interrupt_at_once
from ftrace.models.prediction_progress import PredictionProgress


@dataclass(frozen=True)
class TracedPrompts:
    """Traces of a task's prompts, and how they came about.

    Args:
        traces: In the order of the prompts: all, or those that were looked at until enough were traced.
        kept: How many of them the folder had already.
        others: Of how many other prompts the folder has traces.
        sigma: The unit of noise, if it is that of the folder's earlier traces, and the subjects' own is another.
    """

    traces: list[PromptTrace]
    kept: int = 0
    others: int = 0
    sigma: float | None = None


@checked
def trace_prompts(
    task: TraceTask, accelerator: Name = "auto", devices: Positive | Name = 1, strategy: Name = "auto"
) -> TracedPrompts:
    """Trace prompts, and write each prompt's file as soon as it is done.

    With ``task.sample``, prompts are looked at in an order drawn by the task's seed, after those that the folder has
    already, until so many are traced: neither refused, nor answered wrongly where ``only_correct`` leaves these out.

    Args:
        task: What to trace.
        accelerator: As Lightning's Trainer takes it.
        devices: How many processes share the prompts.
        strategy: As Lightning's Trainer takes it.

    Returns:
        The traces; in every process.

    Raises:
        ValueError: If there are no prompts, the model can't be traced, or the folder belongs to other settings.
    """
    if not task.prompts:
        raise ValueError("expected at least one prompt, found none")
    check_state(task.model)
    _ = task.layer_names, task.decoder_start  # raise errors before anything is written
    CausalTracer(task.model, task.settings, task.layouts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")  # they would load only an index
        warnings.filterwarnings("ignore", ".*across ranks is zero.*")  # no prompt is left for this process
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own
        trainer = Trainer(
            accelerator=accelerator, devices=devices, strategy=strategy, logger=False, enable_checkpointing=False,
            enable_model_summary=False, enable_progress_bar=False, callbacks=[PredictionProgress("prompts")],
            use_distributed_sampler=False,
        )  # fmt: skip
        module = _Tracing(task)
        kept = {index for index in range(len(task.prompts)) if module.folder.is_done(index)}
        order = _order(task, kept)
        traces: dict[int, PromptTrace] = {}
        with ending_launched(trainer):
            while len(traces) < len(order):
                missing = len(order) if task.sample is None else task.sample - _count_traced(traces.values())
                if not missing:
                    break
                module.wanted = order[len(traces) : len(traces) + missing]  # so none is traced in vain
                trainer.predict(module, return_predictions=False)
                trainer.strategy.barrier()  # each process reads what all have written
                traces |= {index: module.folder.read(index) for index in module.wanted}
    return TracedPrompts(
        [traces[index] for index in sorted(traces)], len(kept & traces.keys()), module.folder.others(list(traces)),
        module.folder.sigma if module.folder.measures_anew else None,
    )  # fmt: skip


def _order(task: TraceTask, kept: Collection[int]) -> list[int]:
    """Return the order in which prompts are looked at: as they are, or as drawn, those that are there already first."""
    every = range(len(task.prompts))
    if task.sample is None:
        return list(every)
    drawn = np.random.default_rng(task.seed).permutation(len(task.prompts)).tolist()
    return sorted(drawn, key=lambda index: index not in kept)


def _count_traced(traces: Iterable[PromptTrace]) -> int:
    return sum(trace.status == "traced" for trace in traces)


class _Tracing(LightningModule):
    """The tracing of this process's share of the prompts.

    Attributes:
        wanted: The prompts that are traced next, unless the folder has them.
    """

    def __init__(self, task: TraceTask) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may have nothing left to do
        self.task = task
        self.model = task.model
        self.tokenized = [_tokenized(task, prompt) for prompt in task.prompts]
        self.folder = TraceFolder(task, self.tokenized)
        self.wanted: list[int] = []
        self._is_claimed = False

    @override
    def setup(self, stage: str) -> None:
        """Claim the folder; a process without prompts comes here, too, and waits."""
        if not self._is_claimed:
            if self.trainer.is_global_zero:
                self.folder.claim()
            self.trainer.strategy.barrier()
        self._is_claimed = True

    @override
    def predict_dataloader(self) -> DataLoader:
        mine = self.wanted[self.global_rank :: self.trainer.world_size]
        waiting = [index for index in mine if not self.folder.is_done(index)]
        return DataLoader(waiting, batch_size=None)  # type: ignore[arg-type]

    @override
    def on_predict_start(self) -> None:
        interrupt_at_once(self.trainer)
        self.tracer = CausalTracer(self.model, self.task.settings, self.task.layouts)
        self.corruption = corruption_of(self.task, self.tokenized, self.folder.sigma)

    @override
    def predict_step(self, batch: int, batch_idx: int) -> str:
        prompt = self.task.prompts[batch]
        try:
            tokenized = self.tokenized[batch]
            if isinstance(tokenized, ValueError):
                raise tokenized
            assert self.corruption is not None
            trace = self.tracer.trace(tokenized, self.corruption)
            if self.task.noise.kind not in ("tokens", "full_covariance"):
                trace = replace(trace, sigma=self.corruption.sigma)
        except (ValueError, MemoryError, RuntimeError) as error:
            trace = PromptTrace(
                prompt.name, "refused", " ".join(str(error).split()), prompt.prompt, prompt.subject, prompt.answers,
                prompt.fact, prompt.query_id,
            )  # fmt: skip
        write_trace(self.task.folder, trace, self.folder.described_of(batch))
        return trace.status


def _tokenized(task: TraceTask, prompt: FactPrompt) -> TokenizedPrompt | ValueError:
    """Tokenize a prompt, or return the error with which it is refused when its turn comes."""
    try:
        return task.tokenized(prompt)
    except ValueError as error:
        return error
