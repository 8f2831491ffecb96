"""How much faster rows that grow inside one forward pass are than the usual layouts of causal tracing.

    python benchmarks/causal.py            # GPT-2 small's shape, 9 tokens, 10 samples of noise, three mediators
    python benchmarks/causal.py --growth   # by layers and by tokens

One prompt on a GPT-2 with random weights. Each layout runs in a process of its own, so that its peak memory is its own.
Shared machines change their speed from one second to the next; so the processes take turns, stopped while others run,
each in slices as long as its share of the whole work, and what counts is the time of a process's own slices. The slow
layouts send all places through the head, as their authors' code does; the last place alone takes them as long, since
weights have to be read from memory either way. The floor is a plain forward pass of as many tokens in each layer and as
many rows in the head.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from causal_layouts import forward_per_cell, published_layout, rows_of_full_forwards
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from ftrace.causal import CausalSettings, CausalTracer, Mediator
from ftrace.causal.grids import StackShape, grid_cells
from ftrace.data import FactPrompt, TokenizedPrompt

MEDIATORS: tuple[Mediator, ...] = ("hidden", "attention_severed", "mlp_severed")
SUBJECT = (0, 3)
TOKEN = 9
SLICES = 40
LAYOUTS = {  # and about how many seconds each takes
    "a forward per cell": 120,
    "published layout": 80,
    "rows of whole forwards": 40,
    "growing rows": 20,
    "growing rows, suffix": 12,
    "floor of growing rows": 20,
}


class GivenNoise:
    """The same noise for all layouts."""

    def __init__(self, embedding: torch.nn.Module, noise: Tensor) -> None:
        self.embedding = embedding
        self.noise = noise

    def draw(self, name: str, subject: tuple[int, ...]) -> Tensor:
        """Corrupted embeddings, ``[N, s, D]``."""
        with torch.no_grad():
            found: Tensor = self.embedding(torch.tensor([subject], device=self.noise.device)) + self.noise
        return found


def work_of(name: str, model: Any, ids: Tensor, noise: Tensor, max_tokens: int) -> Callable[[], Any]:
    """What is timed."""
    given = (model, ids, SUBJECT, noise, TOKEN)
    if name == "a forward per cell":
        return lambda: forward_per_cell(*given, outputs=0)
    if name == "published layout":
        return lambda: published_layout(*given, outputs=0)
    if name == "rows of whole forwards":
        return lambda: rows_of_full_forwards(*given, max_tokens)
    if name.startswith("floor"):
        return lambda: plain_forward(model, ids, len(noise), max_tokens)
    settings = CausalSettings(
        mediators=MEDIATORS, only_correct=False, suffix=name.endswith("suffix"), max_tokens=max_tokens, checked=False
    )
    tracer = CausalTracer(model, settings)
    decoded = tuple(map(str, range(len(ids))))
    prompt = TokenizedPrompt(
        FactPrompt("one", "", "", ("",)), tuple(ids.tolist()), decoded, SUBJECT, (), (), ((TOKEN,),), (TOKEN + 1,)
    )
    corruption: Any = GivenNoise(model.transformer.wte, noise)

    def trace() -> Tensor:
        found = tracer.trace(prompt, corruption).stacks["decoder"].restored
        return torch.stack([torch.from_numpy(found[mediator][0]) for mediator in MEDIATORS])

    return trace


@torch.inference_mode()
def plain_forward(model: Any, ids: Tensor, samples: int, max_tokens: int) -> None:
    """As many tokens in each layer, on average, and rows in the head as growing rows have: arithmetic alone."""
    layers = len(model.transformer.h)
    shape = StackShape(layers, len(ids), False, SUBJECT[0], True)
    grids = grid_cells(MEDIATORS, shape, 1)
    cells = {cell for places in grids.values() for row in places for cell in row if shape.known(cell) is None}
    in_head = samples * len(cells)
    in_layers = round(samples * sum(layers - cell.birth for cell in cells) / layers)
    at_once = max(1, max_tokens // len(ids))
    for start in range(0, in_layers, at_once):
        model(ids.expand(min(at_once, in_layers - start), -1), use_cache=False, logits_to_keep=1)
    states = torch.randn(in_head - in_layers, model.config.n_embd, device=ids.device)
    for some in states.split(at_once):
        model.lm_head(some).log_softmax(-1)


def measure(name: str, layers: int, tokens: int, samples: int, max_tokens: int) -> dict[str, Any]:
    """Run one layout in this process, once the process that began it says so."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval()
    ids = torch.randint(50257, (tokens,))
    noise = torch.randn(samples, SUBJECT[1] - SUBJECT[0], model.config.n_embd) * 0.06
    work = work_of(name, model, ids, noise, max_tokens)
    with torch.inference_mode():
        model(ids[None], use_cache=False)
    os.kill(os.getpid(), signal.SIGSTOP)
    found = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak, "sum": None if found is None else float(found.double().sum() * 50257)}


class Turns:
    """A layout's process, which runs only while it has its turn."""

    def __init__(self, name: str, options: Mapping[str, int]) -> None:
        flags = [word for option, value in options.items() for word in (f"--{option}", str(value))]
        self.name = name
        self.seconds = 0.0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "--only", name, *flags], stdout=subprocess.PIPE, text=True
        )
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def run(self, seconds: float) -> None:
        """Let it run for a while, or to its end."""
        started = time.perf_counter()
        os.kill(self._process.pid, signal.SIGCONT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        if not self.is_done:
            os.kill(self._process.pid, signal.SIGSTOP)
        self.seconds += time.perf_counter() - started

    @property
    def is_done(self) -> bool:
        """Whether it has come to its end."""
        return self._process.returncode is not None

    def found(self) -> dict[str, Any]:
        """What it measured."""
        said = self._process.communicate()[0]
        if self._process.returncode:
            raise SystemExit(f"{self.name}: failed")
        measured: dict[str, Any] = json.loads(said.splitlines()[-1])
        return measured


def take_turns(shares: Mapping[str, float], options: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Run layouts by turns; of each its seconds, peak memory and sum."""
    running = [Turns(name, options) for name in shares]
    while any(not one.is_done for one in running):
        for one in running:
            if not one.is_done:
                one.run(shares[one.name] / SLICES)
    return {one.name: {"seconds": one.seconds, **one.found()} for one in running}


def compare(options: Mapping[str, int]) -> Table:
    """All layouts and their ratios."""
    found = take_turns(LAYOUTS, options)
    shape = f"{options['layers']} layers, {options['tokens']} tokens, {options['samples']} samples"
    table = Table(title=f"{shape}, {torch.get_num_threads()} threads")
    for column in ("layout", "seconds", "of a forward per cell", "of the published layout", "peak memory"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for name, one in found.items():
        references = ("a forward per cell", "published layout")
        cells = [f"{found[reference]['seconds'] / one['seconds']:.1f} x" for reference in references]
        table.add_row(name, f"{one['seconds']:.1f}", *cells, f"{one['peak'] / 2**30:.1f} GiB")
    sums = [one["sum"] for one in found.values() if one["sum"] is not None]
    table.caption = f"all grids sum to {sums[0]:.4f} / 50257, within {max(sums) - min(sums):.1e}"
    return table


def growth(options: Mapping[str, int]) -> Table:
    """Growing rows by number of layers and of tokens."""
    table = Table(title="growing rows, by layers and tokens")
    for column in ("layers", "tokens", "seconds", "with suffix", "peak memory"):
        table.add_column(column, justify="right")
    for layers, tokens in ((6, 9), (12, 9), (24, 9), (12, 18), (12, 27)):
        shares = {name: LAYOUTS[name] for name in ("growing rows", "growing rows, suffix")}
        found = list(take_turns(shares, {**options, "layers": layers, "tokens": tokens}).values())
        peak = max(one["peak"] for one in found) / 2**30
        table.add_row(str(layers), str(tokens), *(f"{one['seconds']:.1f}" for one in found), f"{peak:.1f} GiB")
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 12), ("tokens", 9), ("samples", 10), ("max_tokens", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=LAYOUTS, help="Of one turn; the benchmark gives it to itself.")
    parser.add_argument("--growth", action="store_true", help="By layers and tokens.")
    given = vars(parser.parse_args())
    only, by_size = given.pop("only"), given.pop("growth")
    if only:
        print(json.dumps(measure(only, **given)))
    else:
        Console().print(growth(given) if by_size else compare(given))


if __name__ == "__main__":
    main()
