"""Folders of traces: what a folder's traces depend on, which prompts it has, and how others are added to them.

All traces of a folder have the same settings, the same model, and noise of the same size. Each file also notes a hash
of its prompt and of the prompt's tokens. Prompts may be added at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ftrace.causal.corruption import Corruption
from ftrace.causal.layouts import find_modules, layouts_of
from ftrace.causal.prompt_trace import PromptTrace
from ftrace.causal.trace_files import read_settings, read_trace, trace_file
from ftrace.causal.trace_task import TraceTask
from ftrace.data import TokenizedPrompt
from ftrace.files.causal_settings import FORM, SETTINGS
from ftrace.files.digests import DamagedError
from ftrace.files.manifests import read_manifest, write_manifest

_NOT_OF_RESULTS = ("max_tokens", "suffix", "checked")
_MAY_CHANGE = ("prompts", "sigma")


class TraceFolder:
    """The folder of a task's traces.

    Args:
        task: What is traced.
        tokenized: Its prompts in tokens, or why they can't be traced.

    Attributes:
        sigma: The unit of noise: that of the folder's other traces, if it has any; None if the noise has no unit.
        measures_anew: Whether sigma would be another by the subjects of the task's own prompts.

    Raises:
        DamagedError: If the folder's settings can't be read.
    """

    def __init__(self, task: TraceTask, tokenized: Sequence[TokenizedPrompt | ValueError]) -> None:
        self.folder = task.folder
        self._names = [prompt.name for prompt in task.prompts]
        self._known = self._read_known()
        corruption = corruption_of(task, tokenized)
        measured = None if corruption is None or task.noise.kind in _OF_ALL_SUBJECTS else corruption.sigma
        kept = self._known.get("sigma") if task.noise.sigma is None and measured is not None else None
        self.sigma = measured if kept is None else float(kept)
        self.measures_anew = self.sigma != measured
        subjects = _hash(_subjects(task, tokenized)) if task.noise.kind in _OF_ALL_SUBJECTS else None
        tokens = [str(prompt) if isinstance(prompt, ValueError) else _tokens_of(prompt) for prompt in tokenized]
        prompts = [[_as_before(asdict(prompt)), ids] for prompt, ids in zip(task.prompts, tokens, strict=True)]
        self._hashes = [_hash(prompt) for prompt in prompts]
        common = _described(task)
        self._of_one_set = {**common, "prompts": _hash(prompts)}  # as all traces of a folder were once described
        self.described = {**common, "sigma": self.sigma, "subjects": subjects}
        if self._known and "subjects" not in self._known and self._known.get("prompts") == self._of_one_set["prompts"]:
            self.described = self._of_one_set

    def described_of(self, index: int) -> dict[str, Any]:
        """Return what the trace of a prompt depends on, as JSON holds it."""
        if self.described is self._of_one_set:
            return self.described
        return {**self.described, "prompt": self._hashes[index]}

    def is_done(self, index: int) -> bool:
        """Return whether a prompt needs no further run. One that was refused is tried again, which is cheap."""
        name = self._names[index]
        file = trace_file(self.folder, name)
        try:
            if not file.exists() or read_settings(file) != self.described_of(index):
                return False
            trace = read_trace(file)
            return trace.name == name and trace.status != "refused"
        except ValueError:  # damaged: trace the prompt again
            return False

    def read(self, index: int) -> PromptTrace:
        """Read the trace of a prompt.

        Raises:
            ValueError: If it isn't this task's.
        """
        name = self._names[index]
        file = trace_file(self.folder, name)
        if read_settings(file) != self.described_of(index):
            raise ValueError(
                f"{file} was traced with other settings meanwhile. Give each command an output_dir of its own"
            )
        trace = read_trace(file)
        if trace.name != name:
            raise ValueError(
                f"{file}: expected the trace of prompt {name!r}, found that of {trace.name!r}. Delete the file"
            )
        return trace

    def others(self, indices: Sequence[int]) -> int:
        """Return of how many prompts besides some the folder has traces."""
        mine = {trace_file(self.folder, self._names[index]) for index in indices}
        return len(set(trace_file(self.folder, "any").parent.glob("*.safetensors")) - mine)

    def claim(self) -> None:
        """Note which settings the folder belongs to.

        Raises:
            ValueError: If it belongs to others, or has traces of other prompts that have the same names.
        """
        there, asked = (dict(_by_name(settings)) for settings in (self._known, self.described))
        for name, value in asked.items() if self._known else ():
            if name in _MAY_CHANGE or there.get(name) == value:
                continue
            if name == "model":
                raise ValueError(f"{self.folder} has traces of another model. {_REMEDY}")
            if name == "subjects":
                raise ValueError(f"{self.folder} has traces whose noise is drawn from other subjects. {_REMEDY}")
            raise ValueError(
                f"{self.folder} has traces with another {name!r}: expected {json.dumps(there.get(name))}, found "
                f"{json.dumps(value)}. {_REMEDY}"
            )
        if self._known and "subjects" not in self._known and self.described is not self._of_one_set:
            raise ValueError(
                f"{self.folder} has traces of other prompts, by an ftrace that can't add to them. {_REMEDY}"
            )
        for index, name in enumerate(self._names):
            if self._is_of_another(index):
                raise ValueError(f"{self.folder} has traces of other prompts: of another one named {name!r}. {_REMEDY}")
        self.folder.mkdir(parents=True, exist_ok=True)
        versions = {name: version(name) for name in ("ftrace", "torch", "transformers")}
        noted = {**self.described, "prompts": self._of_one_set["prompts"], "versions": versions}
        write_manifest(self.folder / SETTINGS, FORM, noted)

    def _is_of_another(self, index: int) -> bool:
        file = trace_file(self.folder, self._names[index])
        try:
            settings = read_settings(file) if file.exists() else {}
        except ValueError:  # damaged
            return False
        return "prompt" in settings and settings["prompt"] != self._hashes[index]

    def _read_known(self) -> Mapping[str, Any]:
        file = self.folder / SETTINGS
        if not file.exists():
            return {}
        try:
            return read_manifest(file, FORM)
        except DamagedError as error:
            raise DamagedError(f"{error}. {_REMEDY}") from error


_REMEDY = "Remove it, or give another output_dir"
_OF_ALL_SUBJECTS = ("tokens", "full_covariance")  # kinds of noise that depend on more of the subjects than a number


def corruption_of(
    task: TraceTask, tokenized: Sequence[TokenizedPrompt | ValueError], sigma: float | None = None
) -> Corruption | None:
    """Make the corruption of a task's subjects; None if no prompt can be traced.

    Args:
        task: What is traced.
        tokenized: Its prompts in tokens, or why they can't be traced.
        sigma: The unit of noise, if it is known.
    """
    known = [prompt for prompt in tokenized if isinstance(prompt, TokenizedPrompt)]
    if not known:  # each prompt's file says why; corruption would only say that there are no subjects
        return None
    layouts = task.layouts or layouts_of(task.model)
    embedding = next(
        modules.embedding
        for modules in (find_modules(task.model, layout) for layout in layouts.values())
        if modules.embedding is not None
    )
    inside = [prompt.input_ids[slice(*prompt.subject)] for prompt in known]
    noise = task.noise if sigma is None else replace(task.noise, sigma=sigma)
    return Corruption(noise, embedding, _subjects(task, tokenized), inside, [each.prompt.answers for each in known])


def _subjects(task: TraceTask, tokenized: Sequence[TokenizedPrompt | ValueError]) -> list[list[int]]:
    """Return the tokens of each subject alone."""
    texts = [prompt.prompt.subject for prompt in tokenized if isinstance(prompt, TokenizedPrompt)]
    return [list(task.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def _as_before(prompt: dict[str, Any]) -> dict[str, Any]:
    """Leave out what prompts once didn't have, where it has no effect, so that their hashes stay the same."""
    return {
        name: value for name, value in prompt.items() if name not in ("seam", "is_chat") or value not in (None, False)
    }


def _described(task: TraceTask) -> dict[str, Any]:
    """Collect what the results of all prompts depend on, as JSON holds it."""
    settings = {name: value for name, value in asdict(task.settings).items() if name not in _NOT_OF_RESULTS}
    layouts = {stack: asdict(layout) for stack, layout in (task.layouts or layouts_of(task.model)).items()}
    described = {
        "settings": settings, "noise": asdict(task.noise), "layouts": layouts, "as_trained": task.as_trained,
        "model": _fingerprint(task.model),
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


def _by_name(described: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Give each setting with its full name, such as ``noise.scale``."""
    for name, value in described.items():
        if isinstance(value, dict):
            yield from _by_name(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
