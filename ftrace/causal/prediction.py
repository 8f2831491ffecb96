"""Tracing of many prompts under Lightning, prompt by prompt, in one or several processes, resumable."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from ftrace.arguments import Name, Positive, checked
from ftrace.causal.corruption import Corruption, NoiseSettings
from ftrace.causal.layouts import ModelLayout, find_modules, layouts_of
from ftrace.causal.prompt_trace import PromptTrace, Stack
from ftrace.causal.trace_files import read_settings, read_trace, trace_file, write_trace
from ftrace.causal.tracer import CausalSettings, CausalTracer, check_state
from ftrace.data import FactPrompt, TokenizedPrompt, tokenize_prompt
from ftrace.files.causal_settings import FORM, SETTINGS
from ftrace.files.digests import DamagedError
from ftrace.files.manifests import read_manifest, write_manifest
from ftrace.launched_processes import ending_launched, interrupt_at_once
from ftrace.models.prediction_progress import PredictionProgress

_NOT_OF_RESULTS = ("max_tokens", "suffix", "checked")


@checked
@dataclass(frozen=True)
class TraceTask:
    """Prompts to trace through a model.

    Args:
        model: In eval mode.
        tokenizer: The model's tokenizer.
        prompts: The prompts. Each that can't be traced is left out, and its file says why.
        folder: The folder of the files. Prompts that have one already are not traced again.
        settings: What to trace.
        noise: How to corrupt subjects.
        layouts: The names of the model's modules; default: the preset for its type.
        as_trained: Whether the model was trained by ftrace, on the tokens that its collators make.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[FactPrompt]
    folder: Path
    settings: CausalSettings = field(default_factory=CausalSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    layouts: Mapping[Stack, ModelLayout] | None = None
    as_trained: bool = False

    @property
    def layer_names(self) -> dict[Stack, tuple[str, ...]]:
        """The names of each stack's layers within the model."""
        layouts = self.layouts or layouts_of(self.model)
        return {stack: find_modules(self.model, layout).layer_names for stack, layout in layouts.items()}

    def tokenized(self, prompt: FactPrompt) -> TokenizedPrompt:
        """Tokenize a prompt.

        Raises:
            ValueError: If it can't be traced.
        """
        return tokenize_prompt(prompt, self.tokenizer, decoder_start=self.decoder_start, as_trained=self.as_trained)

    @property
    def decoder_start(self) -> int | None:
        """The token that an encoder-decoder's decoder starts with; None for a decoder-only model.

        Raises:
            ValueError: If an encoder-decoder's config doesn't say.
        """
        if not self.model.config.is_encoder_decoder:
            return None
        for config in (self.model.config, getattr(self.model, "generation_config", None)):
            start = getattr(config, "decoder_start_token_id", None)
            if start is not None:
                return int(start)
        raise ValueError(
            "expected a model whose config has decoder_start_token_id, found none. Set it, such as 0 for T5"
        )


@checked
def trace_prompts(
    task: TraceTask, accelerator: Name = "auto", devices: Positive | Name = 1, strategy: Name = "auto"
) -> list[PromptTrace]:
    """Trace prompts, and write each prompt's file as soon as it is done.

    Args:
        task: What to trace.
        accelerator: As Lightning's Trainer takes it.
        devices: How many processes share the prompts.
        strategy: As Lightning's Trainer takes it.

    Returns:
        The traces, in the order of the prompts; in every process.

    Raises:
        ValueError: If there are no prompts, the model can't be traced, or the folder belongs to other settings.
    """
    if not task.prompts:
        raise ValueError("expected at least one prompt, found none")
    check_state(task.model)
    _ = task.layer_names, task.decoder_start  # raise errors before anything is written
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
        with ending_launched(trainer):
            trainer.predict(module, return_predictions=False)
            trainer.strategy.barrier()  # the first process reads what all have written
    return [_read(task.folder, prompt.name, module.described) for prompt in task.prompts]


class _Tracing(LightningModule):
    """The tracing of this process's share of the prompts."""

    def __init__(self, task: TraceTask) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may have nothing left to do
        self.task = task
        self.model = task.model
        self.tokenized = [_tokenized(task, prompt) for prompt in task.prompts]
        self.described = _described(task, self.tokenized)

    @override
    def predict_dataloader(self) -> DataLoader:
        mine = range(self.global_rank, len(self.task.prompts), self.trainer.world_size)
        names = [prompt.name for prompt in self.task.prompts]
        waiting = [index for index in mine if not _is_done(self.task.folder, names[index], self.described)]
        return DataLoader(waiting, batch_size=None)  # type: ignore[arg-type]

    @override
    def on_predict_start(self) -> None:
        interrupt_at_once(self.trainer)
        task = self.task
        self.tracer = CausalTracer(self.model, task.settings, task.layouts)
        if self.trainer.is_global_zero:  # now that all has been checked
            _claim(task.folder, self.described)
        self.trainer.strategy.barrier()
        tokenized = [prompt for prompt in self.tokenized if isinstance(prompt, TokenizedPrompt)]
        subjects = [prompt.prompt.subject for prompt in tokenized]
        alone = [task.tokenizer(subject, add_special_tokens=False)["input_ids"] for subject in subjects]
        inside = [prompt.input_ids[slice(*prompt.subject)] for prompt in tokenized]
        # If no prompt can be traced, each one's file says why. Corruption would only say that there are no subjects.
        answers = [prompt.prompt.answers for prompt in tokenized]
        self.corruption = Corruption(task.noise, self.tracer.embedding, alone, inside, answers) if tokenized else None

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
        write_trace(self.task.folder, trace, self.described)
        return trace.status


def _tokenized(task: TraceTask, prompt: FactPrompt) -> TokenizedPrompt | ValueError:
    """Tokenize a prompt, or return the error with which it is refused when its turn comes."""
    try:
        return task.tokenized(prompt)
    except ValueError as error:
        return error


def _described(task: TraceTask, tokenized: Sequence[TokenizedPrompt | ValueError]) -> dict[str, Any]:
    """Collect all that results depend on, as JSON holds it."""
    settings = {name: value for name, value in asdict(task.settings).items() if name not in _NOT_OF_RESULTS}
    layouts = {stack: asdict(layout) for stack, layout in (task.layouts or layouts_of(task.model)).items()}
    tokens = [str(prompt) if isinstance(prompt, ValueError) else _tokens_of(prompt) for prompt in tokenized]
    prompts = [[asdict(prompt), in_tokens] for prompt, in_tokens in zip(task.prompts, tokens, strict=True)]
    described = {
        "settings": settings, "noise": asdict(task.noise), "layouts": layouts, "prompts": _hash(prompts),
        "as_trained": task.as_trained, "model": _fingerprint(task.model),
    }  # fmt: skip
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _tokens_of(prompt: TokenizedPrompt) -> list[Any]:
    return [prompt.input_ids, prompt.subject, prompt.decoder_ids, prompt.answers, prompt.foil]


def _fingerprint(model: PreTrainedModel) -> str:
    """Hash a model's config and some entries of each parameter and buffer, to tell it from other models."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "transformers_version"}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    samples = [
        [name, str(tensor.dtype), list(tensor.shape), _some_entries(tensor).double().tolist()]
        for name, tensor in tensors
    ]
    return _hash([config, getattr(model.config, "_attn_implementation", None), samples])


def _some_entries(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten()[:: max(1, tensor.numel() // 64)]


def _hash(values: Any) -> str:
    """Hash values that JSON can hold, to 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, default=str, sort_keys=True).encode()).hexdigest()[:16]


def _claim(folder: Path, described: Mapping[str, Any]) -> None:
    """Note which settings a folder belongs to, and refuse one that belongs to others."""
    file = folder / SETTINGS
    if file.exists():
        try:
            known = read_manifest(file, FORM)
        except DamagedError as error:
            raise DamagedError(f"{error}. Remove the folder, or give another output_dir") from error
        there, asked = (dict(_by_name(settings)) for settings in (known, described))
        for name, value in asked.items():
            if there.get(name) != value and name in ("prompts", "model"):
                raise ValueError(
                    f"{folder} has traces of {'another model' if name == 'model' else 'other prompts'}. Remove it, or "
                    "give another output_dir"
                )
            if there.get(name) != value:
                raise ValueError(
                    f"{folder} has traces with another {name!r}: expected {json.dumps(there.get(name))}, found "
                    f"{json.dumps(value)}. Remove it, or give another output_dir"
                )
    folder.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) for name in ("ftrace", "torch", "transformers")}
    write_manifest(file, FORM, {**described, "versions": versions})


def _by_name(described: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Give each setting with its full name, such as ``noise.scale``."""
    for name, value in described.items():
        if isinstance(value, dict):
            yield from _by_name(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _is_done(folder: Path, name: str, described: Mapping[str, Any]) -> bool:
    """Return whether a prompt needs no further run. One that was refused is tried again, which is cheap."""
    file = trace_file(folder, name)
    try:
        if not file.exists() or read_settings(file) != described:
            return False
        trace = read_trace(file)
        return trace.name == name and trace.status != "refused"
    except ValueError:  # damaged: trace the prompt again
        return False


def _read(folder: Path, name: str, described: Mapping[str, Any]) -> PromptTrace:
    file = trace_file(folder, name)
    if read_settings(file) != described:
        raise ValueError(f"{file} was traced with other settings meanwhile. Give each command an output_dir of its own")
    trace = read_trace(file)
    if trace.name != name:
        raise ValueError(
            f"{file}: expected the trace of prompt {name!r}, found that of {trace.name!r}. Delete the file"
        )
    return trace
