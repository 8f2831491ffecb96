"""TracIn at one snapshot by ftrace and by other libraries: time, and error against plain autograd.

    pip install -e . -r benchmarks/peers-requirements.txt
    python benchmarks/peers.py
    python benchmarks/peers.py --num_queries 8 --length 32

(peers-requirements.txt says what to do if torchvision then keeps transformers from being imported.)

Scores are ``<grad loss(example), grad loss(query)>`` of a GPT-2-shaped model with a tied token table; a row's loss is
the sum of its tokens' negative log likelihoods. The oracle takes one row at a time through ``torch.autograd.grad`` in
float64; errors are Frobenius norms over 32 examples times all queries.

Some peers cover fewer parameters. ftrace is timed on those sets as well, and each peer compared with ftrace on the
same one. Where a set has the token table's use as output matrix only, or its two uses without the products between
them, ftrace and the oracle get a copy of the model with the tie cut, in which that matrix is a parameter of its own.

The floor is a forward pass and a backward pass with respect to activations only, in batches, plus the operations that
the products of the 2-D weights take at the machine's measured rate of large matrix products. Lookups and vectors are
free.

Each method runs in the fastest of a few batch sizes, chosen beforehand on fewer examples.
"""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported

import torch
from peer_methods import ALL, METHODS, Method, ParameterSet, build_model, losses
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from transformers import GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

ORACLE_ROWS = 32
CALIBRATION_ROWS = 128  # batch sizes are chosen on that many examples
SLOW = 300  # seconds from which on a method is timed on `--rows` examples only


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_examples", type=int, default=2048)
    parser.add_argument("--num_queries", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=256, help="examples for methods that would take over 5 minutes")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)

    model = build_model()
    generator = torch.Generator().manual_seed(1)
    shape = (args.num_examples + args.num_queries, args.length)
    rows = torch.randint(model.config.vocab_size, shape, generator=generator)
    examples, queries = rows[: args.num_examples], rows[args.num_examples :]

    results = [Result(name, METHODS[name]) for name in args.methods]
    for result in results:
        calibrate(result, model, examples, queries, args.rows)
    floors = {METHODS[name].covers: Floor(METHODS[name].covers) for name in args.methods}
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", flush=True)
        for floor in floors.values():
            floor.seconds.append(measure_floor(floor.covers, model, examples, queries))
        for result in results:
            if not result.failure:
                measure(result, model, examples, queries)
    check(results, model, examples, queries)
    Console(width=200).print(table(results, floors, model, args))


@dataclass
class Result:
    """What was measured of a method."""

    name: str
    method: Method
    batch: int = 1
    rows: int | None = None  # timed on that many examples only
    failure: str = ""
    seconds: list[float] = field(default_factory=list)
    scores: Tensor | None = None
    error_all: float = float("nan")
    error_covered: float = float("nan")


@dataclass
class Floor:
    """What was measured of the floor of a set of parameters."""

    covers: ParameterSet
    seconds: list[float] = field(default_factory=list)


def run(result: Result, model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, batch: int) -> tuple[float, Tensor]:
    """Seconds and scores of one run."""
    gc.collect()
    gc.freeze()  # some peers collect garbage, which would take them longer for all that the others have imported
    start = time.perf_counter()
    scores = result.method.scores(model, examples, queries, batch)
    return time.perf_counter() - start, scores


def calibrate(result: Result, model: GPT2LMHeadModel, examples: Tensor, queries: Tensor, few: int) -> None:
    """Warm up, choose the fastest batch size, and see whether the full size would take too long."""
    method = result.method
    some = examples[:CALIBRATION_ROWS] if len(method.batch_sizes) > 1 else examples[:32]
    try:
        run(result, model, examples[:4], queries[:2], 2 if len(method.batch_sizes) > 1 else 1)
        seconds = {size: run(result, model, some, queries, size)[0] for size in method.batch_sizes}
    except Exception as error:
        verb = "can't be imported" if isinstance(error, ImportError) else "fails"
        result.failure = f"{verb}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        return
    result.batch = min(seconds, key=lambda size: seconds[size])
    measured = ", ".join(f"{size}: {value:.2f} s" for size, value in seconds.items())
    print(f"{result.name}: {len(some)} examples by batch size {measured}", flush=True)
    if seconds[result.batch] * len(examples) / len(some) > SLOW:
        result.rows = min(few, len(examples))


def measure(result: Result, model: GPT2LMHeadModel, examples: Tensor, queries: Tensor) -> None:
    """Time one run."""
    some = examples[: result.rows]
    seconds, result.scores = run(result, model, some, queries, result.batch)
    result.seconds.append(seconds * len(examples) / len(some))


def measure_floor(covers: ParameterSet, model: GPT2LMHeadModel, examples: Tensor, queries: Tensor) -> float:
    """Seconds of the passes in their better batch size, and of the products' operations."""
    model = covers.model(model)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False) if covers.has(name)}
    layers = {path: layer for path, layer in model.named_modules() if f"{path}.weight" in names}
    rows = torch.cat([queries, examples])
    passes = min(seconds_of_passes(model, list(layers.values()), rows, batch) for batch in (32, 64))
    shapes = [layer.weight.shape for layer in layers.values() if isinstance(layer, Conv1D | nn.Linear)]
    operations = sum(operations_of_products(shape, len(examples), len(queries), rows.shape[1]) for shape in shapes)
    return passes + operations / operations_per_second()


def seconds_of_passes(model: nn.Module, layers: Sequence[nn.Module], rows: Tensor, batch: int) -> float:
    """Forward, and backward as far as the outputs of layers whose parameters are covered."""
    outputs: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda layer, args, output: outputs.append(output)) for layer in layers]
    start = time.perf_counter()
    for ids in rows.split(batch):
        outputs.clear()
        torch.autograd.grad(losses(model, ids).sum(), outputs)
    seconds = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    return seconds


def operations_of_products(shape: Sequence[int], N: int, Q: int, T: int) -> int:
    """Of one weight, by the cheaper of two ways: products of places, or gradients made dense."""
    rows, columns = shape
    gram = 2 * N * T * Q * T * (rows + columns)
    dense = 2 * N * rows * columns * (T + Q) + 2 * Q * T * rows * columns
    return min(gram, dense)


def operations_per_second(size: int = 2048) -> float:
    """Best rate of float32 matrix products out of five."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def check(results: Sequence[Result], model: GPT2LMHeadModel, examples: Tensor, queries: Tensor) -> None:
    """Compare each method's last scores with the oracle, over all parameters and over those that it covers."""
    oracles: dict[tuple[ParameterSet, int], Tensor] = {}
    for result in results:
        if result.scores is None:
            continue
        places = torch.linspace(0, len(result.scores) - 1, min(ORACLE_ROWS, len(result.scores))).long()
        for covers in (ALL, result.method.covers):
            if (covers, len(result.scores)) not in oracles:
                oracles[covers, len(result.scores)] = oracle(covers, model, examples[places], queries)
        found = result.scores[places].double()
        result.error_all = relative_error(found, oracles[ALL, len(result.scores)])
        result.error_covered = relative_error(found, oracles[result.method.covers, len(result.scores)])


def oracle(covers: ParameterSet, model: GPT2LMHeadModel, examples: Tensor, queries: Tensor) -> Tensor:
    """Scores by plain autograd, a row at a time, in float64."""
    model = copy.deepcopy(covers.model(model)).double()
    parameters = [parameter for name, parameter in model.named_parameters() if covers.has(name)]

    def gradient(ids: Tensor) -> Tensor:
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(losses(model, ids[None]).sum(), parameters)])

    of_queries = torch.stack([gradient(ids) for ids in queries])
    return torch.stack([of_queries @ gradient(ids) for ids in examples])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """In the Frobenius norm."""
    return float((found - expected).norm() / expected.norm())


def table(
    results: Sequence[Result], floors: dict[ParameterSet, Floor], model: GPT2LMHeadModel, args: argparse.Namespace
) -> Table:
    """One line for each method."""
    size = f"{args.num_examples} examples, {args.num_queries} queries, {args.length} tokens"
    rate = f"{operations_per_second() / 1e9:.0f} GFLOP/s"
    title = f"{size}; {args.threads} threads, {rate}; torch {torch.__version__}, {args.rounds} rounds"
    shown = Table(
        "method", "version", "parameters covered", "batch", r"seconds, median \[min, max]", "times ftrace\non these",
        "times floor\non these", "error against\nall parameters", "error against\nthose covered", title=title,
    )  # fmt: skip
    ours = {r.method.covers: r for r in results if r.method.package == "ftrace" and r.seconds}
    for result in results:
        share = result.method.covers.share(model)
        if result.failure:
            shown.add_row(result.name, installed_version(result.method.package), share, "", escape(result.failure))
            continue
        seconds = statistics.median(result.seconds)
        our = ours.get(result.method.covers)
        least = statistics.median(floors[result.method.covers].seconds)
        note = f"\nextrapolated from {result.rows} examples" if result.rows else ""
        shown.add_row(
            result.name,
            installed_version(result.method.package),
            share,
            str(result.batch),
            f"{seconds:.2f} [{min(result.seconds):.2f}, {max(result.seconds):.2f}]{note}",
            f"{seconds / statistics.median(our.seconds):.2f}" if our else "",
            f"{seconds / least:.2f}",
            f"{result.error_all:.1e}",
            f"{result.error_covered:.1e}",
        )
    for covers, floor in floors.items():
        seconds = statistics.median(floor.seconds)
        spread = f"{seconds:.2f} [{min(floor.seconds):.2f}, {max(floor.seconds):.2f}]"
        shown.add_row("(floor)", "", covers.share(model), "", spread, "", "1.00", "", "")
    return shown


def installed_version(package: str) -> str:
    """Of a distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
