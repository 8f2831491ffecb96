"""A gradient index in one pass over a corpus, by ftrace and by bergson: time, size, and fidelity to exact gradients.

    pip install -e . -r benchmarks/peers-requirements.txt
    python benchmarks/index.py
    python benchmarks/index.py --normaliser true --rows 512

(peers-requirements.txt says what to do if torchvision then keeps transformers from being imported.)

The model is the GPT-2 of benchmarks/random_gpt2.py, the corpus rows of random tokens, and a row's loss the sum of its
tokens' negative log likelihoods. Both sides index the same weights, the attention and MLP matrices of all
blocks without biases, norms, embeddings and head, each projected on both sides to K x K in float32, and write a file.

What bergson 2.5.1 does (its ``collect_gradients``, which ``bergson build`` calls): it hooks the linear layers of the
model without its head. Inputs are projected in the forward pass, the gradients of outputs in the backward pass, each
by a matrix of random signs over sqrt(K) that a hash of the layer's name draws (`projection_seed` changes it), and
their product over a row's tokens is what is stored, for each layer, in the model's precision: float32 by default. The
loss is summed over tokens by default. Batches are packed by ``token_batch_size``, 2048 tokens by default. Its
Adafactor-like normaliser multiplies inputs and output gradients by roots of factors of the second moments before they
are projected. Its default command has the input embeddings need a gradient, so that backward hooks run; where these
are tied to the head, as here, the gradient of the head's weight is computed as well and thrown away. So bergson is
measured as its command runs it, and at its best: only the small table of positions needs a gradient, and batches have
the fastest of several sizes. Reading the model and tokenising are not timed.

The floor is what no implementation can avoid: a forward pass, a backward pass as far as the outputs of the first
indexed layer without any weight gradient, in the fastest of the same batch sizes, and the projections' operations at
the rate of a large matrix product. Writing is free.

Fidelity: inner products of 64 rows' index entries with 64 other rows', against exact gradients' by plain autograd in
float64; over several seeds of the projection, as one draw says little. Products of a row with itself would only raise
the correlation, and are left out.

Limits: faster than bergson at its best, at equal fidelity or better.
"""

from __future__ import annotations

import copy
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from jsonargparse import auto_cli
from random_gpt2 import LanguageModel, Setting, matmul_rate, random_tokens, weight_shapes
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from ftrace.gradients import RankOne
from ftrace.index import (
    FeatureSettings,
    GradientFeatures,
    GradientIndex,
    GradientRows,
    IndexSettings,
    Rows,
    begin_index,
    close_segment,
    write_preconditioners,
    write_shard,
)
from ftrace.scores.correlation import rank_correlation

FIDELITY_ROWS = 64
CALIBRATION_ROWS = 256
BATCH_SIZES = (8, 16, 32, 64)
_STANDARD = Setting()


@dataclass(frozen=True)
class Factors:
    """A weight's second moments, of rank 1: ``outer(row, column) / mean(row)``, as Adafactor keeps them.

    Args:
        row: ``[O]`` float32, means over inputs.
        column: ``[I]`` float32, means over outputs.
    """

    row: Tensor
    column: Tensor

    def roots(self) -> Tensor:
        """What a gradient ``[O, I]`` is divided by."""
        return torch.outer(self.row, self.column).div(self.row.mean()).sqrt()


@dataclass(frozen=True)
class Job:
    """An index to be built.

    Args:
        model: In evaluation mode, on the CPU, in float32. Not to be changed.
        corpus: ``[N, T]`` int64.
        side: K.
        factors: For each indexed layer's name (``transformer.h.0.attn.c_attn``), its second moments; None without a
            normaliser.
        batch_size: Rows of a batch; None: the implementation's own default.
        seed: Of the projection.
    """

    model: GPT2LMHeadModel
    corpus: Tensor
    side: int
    factors: Mapping[str, Factors] | None
    batch_size: int | None
    seed: int


@dataclass(frozen=True)
class Index:
    """What building one gave.

    Args:
        seconds: From the model and the tokens in memory to a whole index on disk.
        rows: ``[N, L * K * K]`` float32, one for each row of the corpus, in its order; their inner products estimate
            those of (normalised) gradients of the summed loss, up to a factor common to all.
        bytes_on_disk: Of everything that was written.
    """

    seconds: float
    rows: np.ndarray
    bytes_on_disk: int


Indexer = Callable[[Job], Index]


def index_with_ftrace(job: Job) -> Index:
    """By what ``ftrace index`` is made of: rows of batches, shards, the autocorrelation, all checks included.

    The projection has random signs, as bergson's. A batch has 16 rows by default; where it comes from a datamodule, it
    is the datamodule's.
    """
    names = [f"{name}.weight" for name in indexed_layers(job.model)]
    given = {}
    for name, one in (job.factors or {}).items():  # Conv1D keeps [I, O]
        given[f"{name}.weight"] = RankOne(one.column.rsqrt(), (one.row / one.row.mean()).rsqrt())
    settings = IndexSettings(
        FeatureSettings(job.side, job.seed, layout="parameter", parameters=tuple(names), entries="rademacher")
    )
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        folder = Path(temporary) / "index"
        begin_index(folder, settings, job.model, names, {})
        segment = folder / "segment-00000000"
        write_preconditioners(segment, given)
        features = GradientFeatures(settings.features, names, given)
        rows_of = GradientRows(job.model, features, losses_without_last)
        rows = torch.cat([rows_of(ids)[0] for ids in job.corpus.split(job.batch_size or 16)])
        rows_of.detach()
        ids = torch.arange(len(rows))
        write_shard(segment / "shard-00000000.safetensors", Rows(rows, ids, torch.ones(len(rows)), 0 * ids), rows.dtype)
        close_segment(segment, names, {"step": 0}, settings.sample, job.seed)
        seconds = time.perf_counter() - start
        return Index(seconds, GradientIndex(folder).segments[0].rows(0, len(rows)).numpy().copy(), _size(folder))


def losses_without_last(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """As :func:`losses`: a row's last token predicts nothing."""
    logits = model(ids[:, :-1]).logits.flatten(0, 1)
    return F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none").view(len(ids), -1).sum(1)


def index_with_bergson(job: Job, *, as_commanded: bool = False) -> Index:
    """By bergson's pass over the data.

    Args:
        job: The index.
        as_commanded: Whether the token table needs a gradient, as its command has it; else that of positions.
    """
    from bergson.collection import collect_gradients
    from bergson.config import IndexConfig
    from bergson.data import allocate_batches, load_gradients
    from bergson.gradients import AdafactorNormalizer, GradientProcessor
    from datasets import Dataset

    model = copy.deepcopy(job.model).requires_grad_(False)
    needs_gradient = model.get_input_embeddings() if as_commanded else model.transformer.wpe
    needs_gradient.requires_grad_(True)
    normalisers = {
        name.removeprefix("transformer."): AdafactorNormalizer(one.row, one.column)
        for name, one in (job.factors or {}).items()
    }
    length = job.corpus.shape[1]
    data = Dataset.from_dict({"input_ids": job.corpus.tolist(), "length": [length] * len(job.corpus)})
    with tempfile.TemporaryDirectory() as folder:
        tokens = {} if job.batch_size is None else {"token_batch_size": job.batch_size * length}
        config = IndexConfig(run_path=f"{folder}/index", projection_dim=job.side, drop_columns=True, **tokens)
        start = time.perf_counter()
        config.partial_run_path.mkdir()
        processor = GradientProcessor(normalisers, projection_dim=job.side, projection_seed=job.seed)
        batches = allocate_batches(data["length"][:], config.token_batch_size)
        collect_gradients(model, data, processor, config, batches=batches)
        seconds = time.perf_counter() - start
        rows = np.array(load_gradients(config.partial_run_path), np.float32)
        return Index(seconds, rows, _size(config.partial_run_path))


def indexed_layers(model: GPT2LMHeadModel) -> dict[str, Conv1D]:
    """The layers whose weights are indexed, by name, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Conv1D)}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def losses(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """Summed over tokens, ``[B]``."""
    logits = model(ids).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)


def exact_gradients(model: GPT2LMHeadModel, ids: Tensor) -> Iterator[dict[str, Tensor]]:
    """For each row, its gradient with respect to each indexed weight, ``[O, I]`` float64, by plain autograd."""
    model = copy.deepcopy(model).double()
    layers = indexed_layers(model)
    for row in ids:
        found = torch.autograd.grad(losses(model, row[None]).sum(), [layer.weight for layer in layers.values()])
        yield {name: gradient.T for name, gradient in zip(layers, found, strict=True)}  # Conv1D keeps [I, O]


def second_moments(model: GPT2LMHeadModel, ids: Tensor) -> dict[str, Factors]:
    """Of each indexed weight, over some rows."""
    sums = {
        name: torch.zeros_like(layer.weight.T, dtype=torch.float64) for name, layer in indexed_layers(model).items()
    }
    for gradients in exact_gradients(model, ids):
        for name, gradient in gradients.items():
            sums[name] += gradient.square()
    means = {name: total.float() / len(ids) for name, total in sums.items()}
    return {name: Factors(mean.mean(1), mean.mean(0)) for name, mean in means.items()}


def exact_products(model: GPT2LMHeadModel, ids: Tensor, factors: Mapping[str, Factors] | None) -> np.ndarray:
    """Inner products of the first half of the rows with the second half, of gradients divided by the roots."""
    roots = {name: one.roots().double() for name, one in (factors or {}).items()}
    flat = [
        torch.cat([(gradient / roots.get(name, 1)).flatten() for name, gradient in gradients.items()])
        for gradients in exact_gradients(model, ids)
    ]
    half = len(flat) // 2
    products: np.ndarray = (torch.stack(flat[:half]) @ torch.stack(flat[half:]).T).numpy()
    return products


def correlations(index: Index, exact: np.ndarray) -> tuple[float, float]:
    """Pearson's and Spearman's, of the index's inner products with the exact ones."""
    half = len(index.rows) // 2
    found = (index.rows[:half].astype(np.float64) @ index.rows[half:].T).ravel()
    return float(np.corrcoef(found, exact.ravel())[0, 1]), rank_correlation(found, exact.ravel())


def seconds_of_passes(model: GPT2LMHeadModel, corpus: Tensor, batch_size: int) -> float:
    """Forward, and backward as far as the outputs of indexed layers; last tokens predict nothing and are left out."""
    model = copy.deepcopy(model).requires_grad_(False)
    outputs: list[Tensor] = []
    for layer in indexed_layers(model).values():
        layer.register_forward_hook(lambda layer, args, output: outputs.append(output))
    start = time.perf_counter()
    for ids in corpus.split(batch_size):
        outputs.clear()
        embedded = model.transformer.wte(ids[:, :-1]).requires_grad_()
        logits = model(inputs_embeds=embedded).logits
        torch.autograd.grad(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"), outputs)
    return time.perf_counter() - start


def operations(setting: Setting, rows: int, side: int) -> float:
    """Of projecting both sides of each weight's gradient and of their product."""
    *blocks, _head = weight_shapes(setting)
    per_token = sum(2 * (size_in + size_out) * side + 2 * side**2 for size_in, size_out in blocks)
    return float(rows * setting.tokens * per_token)


def main(
    setting: Setting = _STANDARD,
    rows: int = 1024,
    side: int = 16,
    normaliser: bool = False,
    rounds: int = 3,
    seeds: int = 5,
    threads: int | None = None,
) -> None:
    """Measure and print a table.

    Args:
        setting: The model, and the rows' length.
        rows: Of the corpus.
        side: Each weight's gradient is projected to this on both sides.
        normaliser: Divide gradients by roots of rank-1 second moments.
        rounds: How often each implementation takes its turn.
        seeds: Of projections, that fidelity is averaged over; at least 2.
        threads: That torch may use; default: as torch chooses.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    torch.manual_seed(0)
    model = LanguageModel(setting).model.eval()
    model.config.use_cache = False
    corpus = random_tokens(setting, rows, seed=0)
    few = random_tokens(setting, 2 * FIDELITY_ROWS, seed=2)
    factors = second_moments(model, random_tokens(setting, FIDELITY_ROWS, seed=3)) if normaliser else None
    job = partial(Job, model, side=side, factors=factors)

    ways: dict[str, tuple[Indexer, int | None]] = {}
    indexers: dict[str, Indexer] = {"ftrace": index_with_ftrace, "bergson": index_with_bergson}
    for name, indexer in indexers.items():
        try:
            indexer(job(few[:8], batch_size=None, seed=0))
        except ImportError as error:
            print(f"{name} is left out: {type(error).__name__}: {error}", flush=True)
            continue
        some = partial(job, corpus[:CALIBRATION_ROWS], seed=0)
        ways[f"{name}, at its best"] = indexer, _fastest(name, partial(_seconds_of_index, indexer, some))
    if "bergson, at its best" in ways:
        ways["bergson, as its command"] = partial(index_with_bergson, as_commanded=True), None
    batch_size = _fastest("passes", partial(seconds_of_passes, model, corpus[:CALIBRATION_ROWS]))

    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "passes")}
    sizes, rates = {}, []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        for name, (indexer, size) in ways.items():
            index = indexer(job(corpus, batch_size=size, seed=0))
            assert index.rows.shape == (rows, len(indexed_layers(model)) * side**2)
            seconds[name].append(index.seconds)
            sizes[name] = index.bytes_on_disk
        seconds["passes"].append(seconds_of_passes(model, corpus, batch_size))
        rates.append(matmul_rate(setting))
    exact = exact_products(model, few, factors)
    fidelity = {
        name: [correlations(indexer(job(few, batch_size=size, seed=seed)), exact) for seed in range(seeds)]
        for name, (indexer, size) in ways.items()
    }
    tokens = rows * setting.tokens
    passes, rate = statistics.median(seconds["passes"]), statistics.median(rates)
    floor = passes + operations(setting, rows, side) / rate
    table = Table("index", "batch", "seconds", "min to max", "tokens/s", "of floor", "MiB", "Pearson", "Spearman")
    for name, (_, size) in ways.items():
        share = statistics.median(seconds[name]) / floor
        found = [_mean(of_seeds) for of_seeds in zip(*fidelity[name], strict=True)]
        mebibytes = f"{sizes[name] / 2**20:.1f}"
        table.add_row(name, str(size or "default"), *_times(seconds[name], tokens), f"{share:.2f}", mebibytes, *found)
    table.add_row("(passes)", str(batch_size), *_times(seconds["passes"], tokens), f"{passes / floor:.2f}")
    table.add_row("(floor)", "", f"{floor:.2f}", "", f"{tokens / floor:,.0f}", "1.00")
    what = "rank-1 second moments" if normaliser else "no normaliser"
    installed = f", bergson {version('bergson')}" if any("bergson" in name for name in ways) else ""
    console = Console(width=130)
    console.print(setting, table)
    console.print(
        f"{rows} rows, {side} x {side} of {len(indexed_layers(model))} weights, {what}; medians of {rounds} turns; "
        f"±: standard deviation over {seeds} projections; {torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s, "
        f"torch {torch.__version__}{installed}"
    )


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ±{statistics.stdev(values):.3f}"


def _fastest(name: str, seconds_of: Callable[[int], float]) -> int:
    """The batch size that takes the least time."""
    seconds = {size: seconds_of(size) for size in BATCH_SIZES}
    print(f"{name}, by batch size: {', '.join(f'{size}: {one:.2f} s' for size, one in seconds.items())}", flush=True)
    return min(seconds, key=lambda size: seconds[size])


def _seconds_of_index(indexer: Indexer, job: Callable[..., Job], batch_size: int) -> float:
    return indexer(job(batch_size=batch_size)).seconds


def _times(seconds: list[float], tokens: int) -> tuple[str, str, str]:
    median = statistics.median(seconds)
    return f"{median:.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}", f"{tokens / median:,.0f}"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    auto_cli(main, as_positional=False)
