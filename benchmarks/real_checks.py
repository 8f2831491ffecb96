"""What ``benchmarks/real.py`` checks: each check's own figure, beside a bound that was stated beforehand."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from checked_lines import Line
from peft import LoraConfig, get_peft_model
from real_hooks import largest_error
from torch import Tensor
from transformers import AutoTokenizer

from ftrace.callbacks import OnlineTracIn
from ftrace.causal import CausalSettings, CausalTracer, Corruption, NoiseSettings
from ftrace.data import (
    FactPrompt,
    FtraceRumours,
    FtraceSynth,
    FtraceTrex,
    SynthSettings,
    make_collator,
    prompts_of_queries,
    read_prompts,
    tokenize_prompt,
)
from ftrace.gradients import GradientCapture
from ftrace.models import FactLM
from ftrace.scores import ScoreStore

SENTENCES = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after the "
    "engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889.",
    "Water boils at a temperature of 100 degrees Celsius at sea level, and freezes at 0 degrees.",
    "The First World War began in 1914 and ended in 1918, after millions of people had lost their lives.",
)
PROMPTS = (
    FactPrompt("france", "The capital of France is", "France", ("Paris",)),
    FactPrompt("tower", "The Eiffel Tower is located in the city of", "Eiffel Tower", ("Paris",)),
)
MAGNIFIED = 1e-2  # rounding, by thirty layers, at most
EXACT = 1e-4  # in float32, relative: of losses; of gradients, to the largest element of a parameter's
TRACED = 1e-4  # of probabilities in float32
STEPS, ROWS = 10, 4
Batch = Mapping[str, Tensor]


class Real:
    """The real model, loaded where it is needed.

    Args:
        folder: Its folder.
        prompts: A file of prompts whose subjects are looked for, too.
    """

    def __init__(self, folder: Path, prompts: Path | None = None) -> None:
        self.folder = str(folder)
        self.prompts = prompts
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    @cached_property
    def module(self) -> FactLM:
        """The model in float32, in eval mode; no check changes it."""
        return FactLM(self.folder).eval()

    def batch(self, *rows: tuple[str, str]) -> dict[str, Tensor]:
        """Collate beginnings and their ends as training rows."""
        collate = make_collator(self.tokenizer, "decoder-only")
        return collate(
            [
                {"example_id": number, "inputs_pretokenized": inputs, "targets_pretokenized": targets}
                for number, (inputs, targets) in enumerate(rows)
            ]
        )


def prediction(real: Real) -> list[Line]:
    """The likeliest next token, and how likely ordinary sentences are, by itself and through FactLM."""
    tokenizer, model = real.tokenizer, real.module.model
    with torch.no_grad():
        asked = tokenizer("The capital of France is", return_tensors="pt")
        token = tokenizer.decode([int(model(**asked).logits[0, -1].argmax())])
        plain, ours, count = 0.0, 0.0, 0
        for sentence in SENTENCES:
            ids = tokenizer(sentence, return_tensors="pt").input_ids
            plain += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            ours += float(real.module.example_losses(real.batch(("", sentence)), end_of_sequence=False))
            count += ids.shape[1] - 1
    perplexity, digits = math.exp(plain / count), tokenizer.tokenize("1984")
    return [
        Line('after "The capital of France is"', repr(token), "' Paris'", token == " Paris"),
        Line("tokens of 1984", " ".join(digits), "1 9 8 4", digits == list("1984")),
        Line("longest text, tokens", str(tokenizer.model_max_length), "8192", tokenizer.model_max_length == 8192),
        Line("perplexity of three sentences", f"{perplexity:.2f}", "at most 12", perplexity <= 12),
        _at_most("loss through FactLM, relative error", abs(ours / plain - 1), EXACT),
    ]


def exactness(real: Real) -> list[Line]:
    """Gradients of two examples, padded in one batch, against plain autograd of each one's loss there, and of it alone.

    In float32 thirty layers magnify rounding: plain autograd of an example alone differs from that of the same example
    in a padded batch, and with two threads from that with one.
    What it differs by, 1% at most, bounds the second line.
    """
    rows = (("The capital of France is", "Paris"), ("Mira Tannow moved to the village of", "Upper Ostrel"))
    module, names = real.module, [name for name, _ in real.module.named_parameters()]
    capture = GradientCapture(module)
    with capture, capture.recording(len(rows)) as recording:
        recording.backward(module.example_losses(real.batch(*rows)))
    found = recording.gradients()
    worst = {"in the batch": 0.0, "alone": 0.0, "plain": 0.0}
    for number, row in enumerate(rows):
        losses = {"in the batch": (real.batch(*rows), number), "alone": (real.batch(row), 0)}
        plain = {
            how: torch.autograd.grad(module.example_losses(batch)[place], list(module.parameters()))
            for how, (batch, place) in losses.items()
        }
        for index, name in enumerate(names):
            read, of_alone = found.dense(name, number, number + 1)[0], plain["alone"][index]
            for how in losses:
                worst[how] = max(worst[how], _relative(read, plain[how][index]))
            worst["plain"] = max(worst["plain"], _relative(plain["in the batch"][index], of_alone))
    covered = f"{len(capture.coverage.covered)} of {len(names)}"
    return [
        Line("parameters whose gradients are read", covered, "all", len(capture.coverage.covered) == len(names)),
        _at_most("gradients of two examples in a batch, float32", worst["in the batch"], EXACT),
        _at_most("the same against each alone", worst["alone"], min(worst["plain"], MAGNIFIED) + EXACT),
    ]


def _relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest element."""
    return float((found - expected).abs().max() / expected.abs().max())


def causal(real: Real) -> list[Line]:
    """Two causal traces against plain hooks, one forward pass for each cell."""
    model = real.module.model
    settings = CausalSettings(mediators=("hidden", "mlp", "attention"))
    tracer = CausalTracer(model, settings)
    subjects = [real.tokenizer(prompt.subject, add_special_tokens=False).input_ids for prompt in PROMPTS]
    corruption = Corruption(NoiseSettings(samples=2), tracer.embedding, subjects)
    lines = []
    for prompt in PROMPTS:
        tokenized = tokenize_prompt(prompt, real.tokenizer)
        trace = tracer.trace(tokenized, corruption)
        error = largest_error(model, tokenized, trace, corruption, settings.window)
        lines.append(_at_most(f'causal trace of "{prompt.prompt}"', error, TRACED))
    return lines


def spans(real: Real) -> list[Line]:
    """The subjects of all prompts that ftrace brings: the tokens that are found spell the subject."""
    lines = []
    with tempfile.TemporaryDirectory() as cache:
        for name, prompts in _prompts(real, cache):
            right = sum(_spells(real, prompt) for prompt in prompts)
            lines.append(Line(f"subjects found, {name}", f"{right} of {len(prompts)}", "all", right == len(prompts)))
    return lines


def training(real: Real) -> list[Line]:
    """Ten traced steps in float32, in bfloat16 and with LoRA; weights are those of ten plain steps, bit by bit."""
    kinds: dict[str, Callable[[], FactLM]] = {
        "float32": lambda: FactLM(real.folder, learning_rate=1e-4),
        "bfloat16": lambda: FactLM(real.folder, learning_rate=0.1, optimizer="sgd", dtype="bfloat16"),
        "LoRA": lambda: LoraLM(real.folder, learning_rate=1e-3),
    }
    lines = []
    for name, make in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            plain, _ = _train(real, make(), None)
            traced, losses = _train(real, make(), Path(folder, "online"))
            scores = ScoreStore.open(Path(folder, "online")).matrix("learning")
            finite = bool(torch.from_numpy(scores.copy()).isfinite().all()) and bool(scores.any())
        same = all(torch.equal(traced[each], weights) for each, weights in plain.items())
        fell = f"{losses[0]:.2f} to {losses[-1]:.2f}"
        lines += [
            Line(f"ten steps, {name}: loss of the first batch", fell, "falls", losses[-1] < losses[0]),
            Line(f"ten steps, {name}: scores", "finite" if finite else "not finite", "finite", finite),
            Line(f"ten steps, {name}: weights", "equal" if same else "differ", "equal to plain ones", same),
        ]
    return lines


CHECKS: dict[str, Callable[[Real], list[Line]]] = {
    check.__name__: check for check in (prediction, exactness, causal, spans, training)
}


class LoraLM(FactLM):
    """The model with adapters on queries and values of its attention, which alone are trained."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model = get_peft_model(self.model, config)


class _Losses(pl.Callback):
    """Callback that keeps the loss of the first batch, before training and after it."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self._batch: Any = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.values:
            self._batch = batch
            self.values.append(float(outputs["loss"]))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            self.values.append(float(pl_module.training_loss(self._batch)))


def _train(real: Real, module: FactLM, store: Path | None) -> tuple[dict[str, Tensor], list[float]]:
    """Train for ten clipped steps, traced if there is a place for a store; trained weights, and two losses."""
    pl.seed_everything(0, verbose=False)
    losses = _Losses()
    callbacks: list[pl.Callback] = [losses]
    if store is not None:
        callbacks.append(
            OnlineTracIn(output_dir=store, scores=("learning",), projection_side=16, refresh_every_n_steps=5)
        )
    trainer = pl.Trainer(
        max_steps=STEPS, accelerator="cpu", gradient_clip_val=1.0, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as cache:
        data = FtraceRumours(data_dir=cache, architecture="decoder-only", tokenizer=real.folder, batch_size=ROWS)
        trainer.fit(module, data)
    trained = {name: weight.detach().clone() for name, weight in module.named_parameters() if weight.requires_grad}
    return trained, losses.values


def _prompts(real: Real, cache: str) -> Iterator[tuple[str, list[FactPrompt]]]:
    settings: dict[str, Any] = {"data_dir": cache, "architecture": "decoder-only", "tokenizer": real.folder}
    readable = SynthSettings(
        entities="readable", num_entities=100, num_relations=10, num_facts=200, num_test_utterances=40,
        num_facts_per_utterance=1, collisions="forbid",
    )  # fmt: skip
    sets = {
        "rumours": FtraceRumours(**settings),
        "FTRACE-SYNTH": FtraceSynth(readable, **settings),
        "FTRACE-TREX, the sample": FtraceTrex("sample", **settings),
    }
    for name, data in sets.items():
        data.prepare_data()
        data.setup()
        yield name, prompts_of_queries(data)
    if real.prompts is not None:
        yield real.prompts.name, read_prompts(real.prompts)


def _spells(real: Real, prompt: FactPrompt) -> bool:
    """Whether the tokens of the subject are all that hold it, and hold no further words."""
    try:
        tokenized = tokenize_prompt(prompt, real.tokenizer)
    except ValueError:
        return False
    text = real.tokenizer.decode(tokenized.input_ids[slice(*tokenized.subject)])
    before, found, after = text.partition(prompt.subject)
    return bool(found) and not re.search(r"\w\W|\W\w", before + after)


def _at_most(name: str, figure: float, bound: float) -> Line:
    return Line(name, f"{figure:.1e}", f"at most {bound:.0e}", figure <= bound)
