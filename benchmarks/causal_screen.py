"""How well gradients tell what causal tracing finds: estimates of whole grids beside exact ones, on a real model.

    python benchmarks/causal_screen.py

Hidden states, and windows of ten layers of attention and MLPs, on SmolLM2-135M-Instruct, whose thirty layers the
settings below are for. Exact grids take about 15 s of processor time a prompt; they are kept in ``data_cache``, and a
command that is repeated takes them from there. Prompts with a total effect of less than five points are left
out. The settings of the last table were chosen by these same prompts, so its figures flatter.

The tables say how the ranks of a grid's cells correlate with the exact ones (median over prompts, and the least), how
often the largest effect is the largest estimate or among the ten largest, leaving out cells where the answer is read
off, and what that costs of growing rows with the suffix path: measured processor time of estimates, and the arithmetic
of exact cells.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_model import CACHE, model_folder
from rich.console import Console
from rich.table import Table
from screen_cells import ScreenedGrid, costs_of_cells
from screen_estimates import KINDS, Differentiated, differentiate, looked_ahead, over_windows
from screen_prompts import SIGMA, known_facts
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ftrace.causal import CausalSettings, CausalTracer, Corruption, NoiseSettings
from ftrace.causal.grids import Measure, StackShape, grid_cells, run_cells
from ftrace.causal.mediators import Mediator
from ftrace.causal.memory import MemoryLimit
from ftrace.causal.outcomes import answer_groups, likeliest_other
from ftrace.causal.passes import inputs_of
from ftrace.causal.readout import readout_cells
from ftrace.data import TokenizedPrompt, tokenize_prompt
from ftrace.files.whole_files import whole_file

WINDOW = 10
LEAST_EFFECT = 0.05
ANCHORS = (4, 12, 20, 27)
ON_THE_WAY = {
    "corrupted": (0.0,),
    "half of the way, mean": (0.0, 0.25, 0.5),
    "all the way, mean": (0.0, 0.25, 0.5, 0.75, 1.0),
}


@dataclass(frozen=True)
class Search:
    """How the largest effect is looked for.

    Args:
        layers: The layers that run exactly at each token.
        errors: How many standard errors a cell is thought to be wrong by at most.
        trust: The factor of estimates while the largest effect is looked for.
        trust_after: That for the cells that are estimated in the end.
    """

    layers: tuple[int, ...]
    errors: float
    trust: float
    trust_after: float


SEARCHES = {
    "hidden": Search((3, 10, 17, 24), 3, 0, 1),
    "mlp": Search((8, 17, 26), 3, 0.5, 0.5),
    "attention": Search((5, 12, 21), 6, 0.5, 0.5),
}


@dataclass(frozen=True)
class Exact:
    """Exact grids of a prompt.

    Args:
        log_probabilities: Of the clean and the corrupted runs, ``[1 + N]``.
        grids: For each kind of state, the log-probabilities ``[L, T, N]`` of the tokens from the subject on.
        seconds: Processor time of each grid.
    """

    log_probabilities: np.ndarray
    grids: dict[str, np.ndarray]
    seconds: dict[str, float]


class Traced:
    """The model, and how prompts are traced through it."""

    def __init__(self, folder: Path, samples: int) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).float().eval().requires_grad_(False)
        self.tracer = CausalTracer(self.model, CausalSettings(mediators=KINDS))
        self.prompts = [tokenize_prompt(prompt, tokenizer) for prompt in known_facts()]
        self.corruption = Corruption(NoiseSettings(samples=samples, sigma=SIGMA), self.tracer.embedding, [])
        self.stack = self.tracer.passes.stacks["decoder"]

    def corrupted_subject(self, prompt: TokenizedPrompt) -> Tensor:
        """Draw corrupted embeddings of the subject, ``[N, S, D]``."""
        return self.corruption.draw(prompt.prompt.name, prompt.input_ids[slice(*prompt.subject)])

    def exact(self, prompt: TokenizedPrompt) -> Exact | None:
        """Trace a prompt exactly; None if the model answers it wrongly."""
        passes, answer = self.tracer.passes, prompt.answers[0][:1]
        inputs = inputs_of(prompt.input_ids, prompt.subject, (), answer, passes.device)
        with torch.inference_mode():
            runs = passes.runs(inputs, self.corrupted_subject(prompt), keep_cache=True)
        if int(runs.logits[0, -1].argmax()) != answer[0]:
            return None
        measure = Measure(answer_groups([answer])[0], answer[0], likeliest_other(runs.logits[0, 0], answer))
        of_runs = measure(runs.logits)[:, 0]
        first = prompt.subject[0]
        shape = StackShape(len(self.stack.layers), len(prompt.tokens), False, first, True)
        grids: dict[str, np.ndarray] = {}
        seconds: dict[str, float] = {}
        for kind, layers in grid_cells(KINDS, shape, WINDOW).items():
            start = time.process_time()
            cells = [cell for row in layers for cell in row]
            waiting = [cell for cell in dict.fromkeys(cells) if shape.known(cell) is None]
            limit = MemoryLimit(self.tracer.settings.max_tokens)
            outcomes = run_cells(passes, "decoder", inputs, runs, waiting, measure, limit, suffix=True)
            known = {"clean": of_runs[:1].expand(len(of_runs) - 1), "corrupted": of_runs[1:]}
            values = [known[shape.known(cell) or ""] if shape.known(cell) else outcomes[cell][:, 0] for cell in cells]
            grids[kind] = torch.stack(values).view(len(layers), -1, len(of_runs) - 1)[:, first:].numpy()
            seconds[kind] = time.process_time() - start
        return Exact(of_runs.numpy(), grids, seconds)

    def differentiated(self, prompt: TokenizedPrompt, share: float, *, frozen_norms: bool = False) -> Differentiated:
        """Differentiate runs on the way from the corrupted ones, 0, to the clean one, 1, at all tokens."""
        with torch.no_grad():
            clean: Tensor = self.tracer.embedding(torch.tensor([prompt.input_ids]))
            corrupted = self.corrupted_subject(prompt)
        given = clean.repeat(len(corrupted), 1, 1)
        subject = slice(*prompt.subject)
        given[:, subject] = corrupted + share * (clean[:, subject] - corrupted)
        return differentiate(self.model, self.stack, given, prompt.answers[0][0], frozen_norms=frozen_norms)

    def estimates(self, prompt: TokenizedPrompt) -> Iterator[tuple[str, dict[Mediator, np.ndarray], float]]:
        """Give each estimate's name, its changes of log-odds ``[L, T, N]`` by kind, and its processor time."""
        first = prompt.subject[0]
        seconds: dict[float, float] = {}
        runs: dict[float, Differentiated] = {}
        for share in sorted({share for shares in ON_THE_WAY.values() for share in shares}):
            start = time.process_time()
            runs[share] = self.differentiated(prompt, share)
            seconds[share] = time.process_time() - start
        changes = {kind: runs[1.0].states[kind] - runs[0.0].states[kind] for kind in KINDS}

        def by_kind(several: Sequence[Differentiated]) -> dict[Mediator, np.ndarray]:
            means = {
                kind: torch.stack([run.by_tokens(kind, changes[kind]) for run in several]).mean(0) for kind in KINDS
            }
            return {
                kind: (mean if kind == "hidden" else over_windows(mean, WINDOW))[:, first:].double().numpy()
                for kind, mean in means.items()
            }

        for name, shares in ON_THE_WAY.items():
            yield name, by_kind([runs[share] for share in shares]), sum(seconds[share] for share in shares)
        yield "clean", by_kind([runs[1.0]]), seconds[1.0]
        start = time.process_time()
        frozen = self.differentiated(prompt, 0.0, frozen_norms=True)
        yield "corrupted, norms frozen", by_kind([frozen]), time.process_time() - start
        for ahead in (1, 4):
            start = time.process_time()
            hidden = looked_ahead(self.stack, runs[0.0], changes["hidden"], ahead)[:, first:].double().numpy()
            name = f"corrupted, after {ahead} exact layer{'s' * (ahead > 1)}"
            yield name, {"hidden": hidden}, seconds[0.0] + time.process_time() - start


def kept(file: Path, trace: Callable[[], Exact | None]) -> Exact | None:
    """Return exact grids from a file, which is made where it isn't there."""
    if not file.exists():
        exact = trace()
        arrays: dict[str, Any] = {} if exact is None else {"runs": exact.log_probabilities, **exact.grids}
        about = json.dumps({} if exact is None else exact.seconds)
        with whole_file(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, about=np.array(about), **arrays)
    with np.load(file) as read:
        if "runs" not in read:
            return None
        return Exact(read["runs"], {kind: read[kind] for kind in KINDS}, json.loads(str(read["about"])))


def screened(exact: Exact, kind: Mediator, estimates: np.ndarray, model: Any) -> ScreenedGrid:
    """Make a screened grid of a prompt."""
    odds = _log_odds(exact.grids[kind])
    of_runs = _log_odds(exact.log_probabilities)
    layers, tokens, _ = odds.shape
    shape = StackShape(layers, tokens, False, 0, True)
    cells = grid_cells([kind], shape, WINDOW)[kind]
    run = np.array([[shape.known(cell) is None for cell in row] for row in cells])
    read_off = readout_cells("decoder", kind, (tokens, layers), tokens - 1, reads_subject=True).T
    births = np.array([row[0].birth for row in cells])
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
    head = model.get_output_embeddings().weight.numel() / sum(weights.numel() for weights in layer.parameters())
    costs = costs_of_cells(births, tokens, head)
    return ScreenedGrid(odds, of_runs[1:], float(of_runs[0]), estimates, run, run & ~read_off, costs)


def _log_odds(logs: np.ndarray) -> np.ndarray:
    odds: np.ndarray = logs - np.log1p(-np.exp(np.minimum(logs, -1e-12)))
    return odds


class Rows:
    """What was measured, by row of a table and prompt."""

    def __init__(self) -> None:
        self._rows: dict[tuple[Mediator, str], list[tuple[float, int, float, float]]] = {}

    def add(self, kind: Mediator, name: str, correlation: float, place: int, cost: float, whole: float) -> None:
        """Add a prompt's rank correlation, how many cells seemed larger than the largest, and costs."""
        self._rows.setdefault((kind, name), []).append((correlation, place, cost, whole))

    def table(self, title: str, places: Sequence[tuple[str, int]]) -> Table:
        """Make a table; ``places`` are columns: how often fewer cells than that seemed larger than the largest."""
        table = Table(title=title)
        for column in ("restored", "estimate", "rank correlation", "least", *(name for name, _ in places), "cost"):
            table.add_column(column, justify="left" if column in ("restored", "estimate") else "right")
        for (kind, name), rows in sorted(self._rows.items(), key=lambda item: KINDS.index(item[0][0])):
            correlations, at, costs, wholes = (np.array(column) for column in zip(*rows, strict=True))
            shares = (f"{np.mean(at < limit):.0%}" for _, limit in places)
            table.add_row(
                kind, name, f"{np.median(correlations):.2f}", f"{correlations.min():.2f}", *shares,
                f"{costs.sum() / wholes.sum():.1%}",
            )  # fmt: skip
        return table


def compare(traced: Traced, folder: Path, console: Console) -> None:
    """Print all tables."""
    plain, anchored, confirmed, count, several = Rows(), Rows(), Rows(), 0, 0
    for prompt in traced.prompts:
        file = folder / f"{prompt.prompt.name}.npz"
        exact = kept(file, lambda prompt=prompt: traced.exact(prompt))  # type: ignore[misc]
        if exact is None:
            continue
        probabilities = np.exp(exact.log_probabilities)
        if probabilities[0] - probabilities[1:].mean() < LEAST_EFFECT:
            continue
        count += 1
        several += len(prompt.tokens) - prompt.subject[0] > 3
        for name, by_kind, seconds in traced.estimates(prompt):
            for kind, estimates in by_kind.items():
                whole = exact.seconds[kind]
                grid = screened(exact, kind, estimates, traced.model)
                plain.add(kind, name, grid.correlation(), grid.place_of_largest(), seconds, whole)
                grid.confirm((layer, token) for layer in ANCHORS for token in range(estimates.shape[1]))
                cost = seconds + grid.share * whole
                anchored.add(kind, name, grid.correlation(), grid.place_of_largest(), cost, whole)
                if name == "corrupted":
                    cost = grid.share * whole
                    anchored.add(kind, "none", grid.correlation(0), grid.place_of_largest(0), cost, whole)
                    search = SEARCHES[kind]
                    grid = screened(exact, kind, estimates, traced.model)
                    grid.confirm((layer, token) for layer in search.layers for token in range(estimates.shape[1]))
                    grid.confirm_largest(4, search.errors, search.trust)
                    place = 0 if grid.is_largest_found else 1
                    cost = seconds / len(KINDS) + grid.share * whole
                    confirmed.add(kind, name, grid.correlation(search.trust_after), place, cost, whole)
    console.print(f"{count} prompts, {several} of them with four tokens or more from the subject on")
    tens = (("first", 1), ("in ten", 10))
    console.print(plain.table("Estimates alone", tens))
    console.print(anchored.table(f"With layers {', '.join(map(str, ANCHORS))} exact at every token", tens))
    console.print(confirmed.table("Some layers exact, the largest confirmed", (("found", 1),)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="Where the model and exact grids are kept.")
    parser.add_argument("--samples", type=int, default=3, help="Samples of noise.")
    given = parser.parse_args()
    console = Console()
    traced = Traced(model_folder(given.cache, console.print), given.samples)
    folder = given.cache / "causal_screen" / str(given.samples)
    folder.mkdir(parents=True, exist_ok=True)
    compare(traced, folder, console)


if __name__ == "__main__":
    main()
