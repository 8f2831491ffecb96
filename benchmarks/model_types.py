"""Does OnlineTracIn work with every text model type of Transformers? A small model of each, against plain autograd.

    python benchmarks/model_types.py
    python benchmarks/model_types.py --types gpt2 t5 mixtral --out model_types.md
    python benchmarks/model_types.py --rows 8 --queries 8    # as many as tokens, so that axes can be mistaken
    python benchmarks/model_types.py --use_cache             # with the cache that models have by default
    python benchmarks/model_types.py --packed                # all examples of a step in one row, for decoders

A model of random weights, in a module that knows nothing of attribution, is trained for two steps with OnlineTracIn at
its defaults. Its ``dot`` scores are held against a replay by autograd, in which an example's contribution is the
gradient of its own share of the batch's loss, and its trained weights against those of training without it. Each type
has a process of its own, so that a hang or a crash ends with it.

Results: ``exact`` (the largest error is below 1e-4 of the largest score), ``wrong``, ``weights differ``, ``refused``
(with the message), ``crashed``, ``not built`` (and why). Parameters are counted by how they were read; in a name,
``*`` is any number.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import logging
import multiprocessing
import os
import re
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from small_models import build, family, random_batch, token_losses, type_names, why_not_built
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import ftrace
import ftrace.callbacks
from ftrace.callbacks import OnlineTracIn
from ftrace.scores import ScoreStore

STEPS = 2
LEARNING_RATE = 0.01
TOLERANCE = 1e-4
OURS = tuple(package.__path__[0] for package in (ftrace, ftrace.callbacks))
COLUMNS = ("type", "family", "parameters", "result", "largest error", "by rule", "by fallback", "not covered")


@dataclass(frozen=True)
class Setting:
    """What all types have in common.

    Args:
        rows: Examples of a step.
        queries: How many, in one batch.
        use_cache: Whether models keep keys and values while they train.
        packed: Whether all examples of a step are documents of one row.
    """

    rows: int
    queries: int
    use_cache: bool
    packed: bool = False


@dataclass(frozen=True)
class Outcome:
    """A line of the table.

    Args:
        name: The type.
        family: What kind of model it is.
        elements: Of all its parameters.
        result: What came of it.
        error: The largest error of a score, of the largest score.
        by_rule: How many parameters have a rule.
        by_fallback: How many are covered by the fallback, and which.
        uncovered: How many are not covered, and which.
    """

    name: str
    family: str = ""
    elements: int = 0
    result: str = ""
    error: float | None = None
    by_rule: str = ""
    by_fallback: str = ""
    uncovered: str = ""

    def as_markdown(self) -> str:
        """The line."""
        elements = f"{self.elements:,}" if self.elements else ""
        error = "" if self.error is None else f"{self.error:.1e}"
        cells = (self.name, self.family, elements, self.result, error, self.by_rule, self.by_fallback, self.uncovered)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


class Module(pl.LightningModule):
    """Wraps a model, as anybody would."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean over examples."""
        return example_losses(self.model, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def packed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of a batch as documents of one row, whose positions begin anew."""
    kept = batch["attention_mask"].bool()
    labels, positions = batch["labels"].clone(), torch.arange(kept.shape[1]).expand(kept.shape)
    labels[:, 0] = -100
    tokens = {"input_ids": batch["input_ids"], "labels": labels, "position_ids": positions}
    return {name: value[kept][None] for name, value in tokens.items()}


def example_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """One loss for each row, or for each document of a packed one."""
    if "position_ids" not in batch:
        return token_losses(model, batch)
    takes = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in batch.items() if name in takes and name != "labels"}
    logits, labels = model(**inputs).logits[0, :-1], batch["labels"][0, 1:]
    losses = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    owners = (batch["position_ids"][0] == 0).cumsum(0)[:-1] - 1
    return losses.new_zeros(int(owners.max()) + 1).index_add(0, owners, losses)


def make_batches(model: Any, setting: Setting) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Batches of examples, and one of queries."""
    first_ids = range(0, STEPS * setting.rows, setting.rows)
    examples = [
        {**random_batch(model, setting.rows, seed), "example_id": torch.arange(first, first + setting.rows)}
        for seed, first in enumerate(first_ids)
    ]
    return examples, {**random_batch(model, setting.queries, seed=STEPS), "query_id": torch.arange(setting.queries)}


def as_they_are(batches: Any) -> DataLoader:
    """A loader of batches that are made."""
    return DataLoader(batches, batch_size=None)


def train(name: str, setting: Setting, callbacks: Sequence[pl.Callback] = ()) -> dict[str, Tensor]:
    """Train, and return the weights."""
    pl.seed_everything(0, verbose=False)
    module = Module(build(name, use_cache=setting.use_cache))
    examples, _ = make_batches(module.model, setting)
    if setting.packed:
        examples = [packed(batch) | {"example_id": batch["example_id"]} for batch in examples]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, as_they_are(examples))
    return module.model.state_dict()


@dataclass(frozen=True)
class Traced:
    """What OnlineTracIn has found.

    Args:
        scores: ``[examples, queries]``.
        weights: Those that it leaves.
        coverage: The lines of the store's manifest.
    """

    scores: Tensor
    weights: dict[str, Tensor]
    coverage: list[dict[str, Any]]


def trace(name: str, setting: Setting) -> Traced:
    """Train with OnlineTracIn."""
    _, queries = make_batches(build(name), setting)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "online"
        online = OnlineTracIn(as_they_are([queries]), store, lambda module, batch: token_losses(module.model, batch))
        weights = train(name, setting, [online])
        scores = ScoreStore.open(store)
        rows, columns = scores.example_ids.argsort(), scores.query_ids.argsort()
        matrix = torch.from_numpy(scores.matrix("dot")[rows][:, columns].copy()).double()
        return Traced(matrix, weights, scores.manifest["coverage"])


def replay(name: str, setting: Setting) -> Tensor:
    """The same scores by plain autograd, one example and one query at a time."""
    pl.seed_everything(0, verbose=False)
    model = build(name, use_cache=setting.use_cache)
    batches, queries = make_batches(model, setting)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    scores = []
    for batch in batches:
        of_queries = gradients(token_losses(model.eval(), queries), parameters)
        losses = example_losses(model.train(), packed(batch) if setting.packed else batch)
        of_examples = gradients(losses / len(losses), parameters)
        scores.append(LEARNING_RATE * of_examples.double() @ of_queries.double().T)
        step = torch.autograd.grad(losses.mean(), parameters, allow_unused=True)  # a sum of shares is rounded apart
        for parameter, grad in zip(parameters, step, strict=True):
            if grad is not None:
                parameter.data.add_(grad, alpha=-LEARNING_RATE)
    return torch.cat(scores)


def gradients(losses: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Each loss's gradient, ``[losses, elements]``."""
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if grad is None else grad for grad, p in zip(grads, parameters, strict=True)]
        rows.append(torch.cat([grad.flatten() for grad in filled]))
    return torch.stack(rows)


def how_covered(coverage: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many parameters are covered by rules, by the fallback, and not; which, but for the first."""
    names: dict[str, list[str]] = {"by_rule": [], "by_fallback": [], "uncovered": []}
    for line in coverage:
        if line["status"] == "covered":
            by_fallback = any(rule.startswith("fallback") for rule in line["rules"])
            names["by_fallback" if by_fallback else "by_rule"].append(line["parameter"])
        elif line["status"] != "frozen":
            names["uncovered"].append(line["parameter"])
    cells = {way: [str(len(of_way)), *shortened(of_way)] for way, of_way in names.items() if of_way}
    return {way: cell[0] if way == "by_rule" else f"{cell[0]}: {', '.join(cell[1:])}" for way, cell in cells.items()}


def shortened(names: Sequence[str]) -> list[str]:
    """The ends of parameters' names, without numbers, each once."""
    return list(dict.fromkeys(".".join(re.sub(r"\d+", "*", name).split(".")[-3:]) for name in names))


def examine(name: str, setting: Setting) -> Outcome:
    """All that is done with one type."""
    outcome = Outcome(name)
    try:
        reason = why_not_built(name)
        if reason is not None:
            return replace(outcome, result=f"not built: {reason}")
        model = build(name)
        if setting.packed and model.config.is_encoder_decoder:
            return replace(outcome, result="not built: rows of an encoder-decoder aren't packed")
        outcome = replace(outcome, family=family(model), elements=model.num_parameters())
        expected, plain = replay(name, setting), train(name, setting)
    except Exception as error:
        return replace(outcome, result=f"not built: {described(error)}")
    try:
        traced = trace(name, setting)
    except Exception as error:
        return replace(outcome, result=f"{'refused' if is_refusal(error) else 'crashed'}: {described(error)}")
    outcome = replace(outcome, **how_covered(traced.coverage))
    largest_error = float((traced.scores - expected).abs().max() / expected.abs().max())
    result = "exact" if largest_error < TOLERANCE else "wrong"
    changed = [key for key, value in plain.items() if not torch.equal(value, traced.weights[key])]
    if changed:
        result = f"weights differ: {', '.join(shortened(changed))}; scores {result}"
    return replace(outcome, result=result, error=largest_error)


def is_refusal(error: Exception) -> bool:
    """Whether our own code has raised it, on purpose."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return raised_in.startswith(OURS) and isinstance(error, ValueError | RuntimeError)


def described(error: Exception) -> str:
    """The first two lines of an error (the second has a parameter's name), with its kind unless it is a refusal."""
    lines = " / ".join(line.strip() for line in str(error).splitlines()[:2])
    return lines if is_refusal(error) else f"{type(error).__name__}: {lines}"


def _examine_and_send(name: str, setting: Setting, sender: Connection) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with (
        Path(os.devnull).open("w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        outcome = examine(name, setting)
    sender.send(outcome)


def examine_apart(name: str, setting: Setting, limit: float) -> Outcome:
    """The same in a process of its own, for so many seconds at most."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "transformers", "ftrace.callbacks"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_examine_and_send, args=(name, setting, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit):
            return Outcome(name, result=f"crashed: not done after {limit:g} s")
        outcome: Outcome = receiver.recv()
        return outcome
    except EOFError:
        process.join()
        return Outcome(name, result=f"crashed: its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def main() -> None:
    """Go through the types, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=list(type_names()), metavar="TYPE", help="Which; default: all.")
    parser.add_argument("--rows", type=int, default=4, help="Examples of a step.")
    parser.add_argument("--queries", type=int, default=3, help="How many queries.")
    parser.add_argument("--use_cache", action="store_true", help="Leave the models' cache on.")
    parser.add_argument("--packed", action="store_true", help="Pack all examples of a step into one row.")
    parser.add_argument("--limit", type=float, default=120.0, help="Seconds for each type.")
    parser.add_argument("--out", type=Path, help="A file that the table is written to as well.")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.types) - type_names().keys())
    if unknown:
        parser.error(f"--types: expected model types of Transformers (TYPE-decoder: a decoder alone), found {unknown}")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    print("\n".join(lines))
    setting = Setting(arguments.rows, arguments.queries, arguments.use_cache, arguments.packed)
    results: Counter[str] = Counter()
    for name in arguments.types:
        outcome = examine_apart(name, setting, arguments.limit)
        results[outcome.result.partition(":")[0]] += 1
        lines.append(outcome.as_markdown())
        print(lines[-1], flush=True)
    counts = ", ".join(f"{count} {result}" for result, count in results.items())
    lines.append(f"\nTransformers {transformers.__version__}: {counts}")
    print(lines[-1])
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
