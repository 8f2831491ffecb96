"""Is tracing right on a GPU? Scores beside those of the CPU, training beside plain training, in each precision.

A check is a function of a kind of model and a device that yields lines, each a figure beside its bound. They are run by
``benchmarks/gpu.py`` and, where there is a GPU, by ``tests/gpu``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from checked_lines import Line
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor

from ftrace.callbacks import CheckpointSnapshots, GradientIndexWriter
from ftrace.index import GradientIndex
from ftrace.scores import ScoreStore
from gpu_parts.causal_grids import of_grids
from gpu_parts.findings import Finding, LeftOutError, in_short, of_lines
from gpu_parts.running import Given
from gpu_parts.small_runs import (
    ACCUMULATED,
    BATCH,
    KINDS,
    PROJECTED,
    on_cpu,
    relative_error,
    rows,
    traced,
    tracer,
    train,
)

Check = Callable[[str, str], Iterator[Line]]
# Of the largest score. In float32, sums come in another order. Llama and T5 compute norms and rotations in float32
# whatever their dtype, and second moments of gradients that are rounding only scale what `update` sees of them.
BOUNDS = {"64-true": 1e-9, "32-true": 1e-3}
FLOAT32_INSIDE = {"llama": 1e-4, "t5": 1e-4}
OF_UPDATE = 0.05
AGREES = 0.9  # correlation of scores in half precision with those in float64
AGREES_SCALED = 0.99  # of those with a loss scaler, of the steps that were taken
ENOUGH_SECONDS = 15.0  # for a check


def of_scores(kind: str, device: str) -> Iterator[Line]:
    """Compare scores on the device with those on the CPU, in float64 and float32, exact and projected."""
    for precision, bound in BOUNDS.items():
        for side in (None, 4):
            expected = on_cpu(kind, precision, side)
            found, _ = traced(kind, device, precision, side=side)
            for score in expected.kinds:
                allowed = max(bound, FLOAT32_INSIDE.get(kind, 0.0))
                if score == "update" and (precision == "32-true" or kind in FLOAT32_INSIDE):
                    allowed = OF_UPDATE
                how = "exact" if side is None else f"side {side}"
                error = relative_error(found.matrix(score), expected.matrix(score))
                yield _bounded(f"{kind}: {score}, {how}, {precision}", error, allowed)
            ledger = found.manifest["ledger"]
            if side is None:
                balanced, worst = ledger["balanced"], ledger["worst_imbalance"]
                yield Line(f"{kind}: ledger, {precision}", f"{worst:.1e}", "balanced", balanced is True)


def of_precisions(kind: str, device: str) -> Iterator[Line]:
    """Trace in half precision, with fused steps and with TF32: no false alarm, and scores like those in float64."""
    expected = on_cpu(kind, "64-true")
    ways: list[tuple[str, str, bool, str]] = [
        ("bf16-mixed", "bf16-mixed", False, "highest"), ("bf16-true", "bf16-true", False, "highest"),
    ]  # fmt: skip
    if device == "cuda":
        ways += [
            ("16-mixed", "16-mixed", False, "highest"), ("fused AdamW", "32-true", True, "highest"),
            ("TF32", "32-true", False, "high"),
        ]  # fmt: skip
    for name, precision, fused, products in ways:
        torch.set_float32_matmul_precision(products)
        try:
            found, _ = traced(kind, device, precision, fused=fused)
            skipped = len(found.manifest["steps_skipped"])
            agrees = _correlation(found, expected)
            figure = f"{agrees:.3f}" + (f", {skipped} steps skipped" if skipped else "")
            yield Line(f"{kind}: {name}", figure, f"{AGREES}", agrees >= AGREES)
        except Exception as error:  # a line of the table, so that the others are seen, too
            yield _raised(f"{kind}: {name}", error)
        finally:
            torch.set_float32_matmul_precision("highest")


def of_training(kind: str, device: str) -> Iterator[Line]:
    """Train with and without tracing: weights must be equal, bit by bit."""
    with _Deterministic():
        for precision in ("32-true", "bf16-mixed"):
            plain = train(kind, device, precision, Path(tempfile.mkdtemp()))
            _, weights = traced(kind, device, precision, side=4, refresh="auto")
            yield _same_weights(f"{kind}: weights, {precision}", plain, weights)


def of_index(kind: str, device: str) -> Iterator[Line]:
    """Compare the rows of an index that is written while training with those that the CPU writes."""
    found = []
    for where in ("cpu", device):
        folder = Path(tempfile.mkdtemp())
        writer = GradientIndexWriter(folder / "index", projection_side=4, segment_steps=6, dtype="float64")
        train(kind, where, "64-true", folder, [writer])
        found.append(_rows_of_index(folder / "index"))
    bound = max(BOUNDS["64-true"], FLOAT32_INSIDE.get(kind, 0.0))
    yield _bounded(f"{kind}: rows of an index, 64-true", relative_error(found[1], found[0]), bound)


# A scaler that grows until it overflows, and one that begins far too large.
SCALERS: dict[str, dict[str, Any]] = {
    "grows": {"init_scale": 2.0**18, "growth_factor": 16.0, "growth_interval": 2},
    "begins high": {"init_scale": 2.0**24},
}  # fmt: skip


def of_skipped_steps(kind: str, device: str) -> Iterator[Line]:
    """Let the loss scaler be far too large: scores must be those of a run that has only the steps that were taken.

    Skipped steps change neither weights nor the optimizer, so that run is one without their batches.
    """
    data, of_step = rows(96, "example_id", 2), BATCH * ACCUMULATED
    for name, options in SCALERS.items():
        plugin = MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, **options))
        try:
            found, _ = traced(kind, device, None, refresh=1, data=data, epochs=1, plugins=[plugin])
        except Exception as error:  # a line of the table, so that the other is seen, too
            yield _raised(f"{kind}: 16-mixed, scaler {name}", error)
            continue
        skipped, steps = found.manifest["steps_skipped"], len(data) // of_step
        yield Line(f"{kind}: scaler {name}, steps skipped", f"{len(skipped)}", "some", 0 < len(skipped) <= steps - 4)
        taken = [row for row in data if row["example_id"] // of_step not in skipped]
        expected, _ = traced(kind, "cpu", "64-true", refresh=1, data=taken, epochs=1)
        same = np.array_equal(np.sort(found.example_ids), np.sort(expected.example_ids))
        yield Line(f"{kind}: scaler {name}, examples scored", f"{len(found.example_ids)}", f"{len(taken)}", same)
        if same:
            agrees = _correlation(found, expected)
            right = agrees >= AGREES_SCALED
            yield Line(f"{kind}: scaler {name}, of the steps taken", f"{agrees:.4f}", f"{AGREES_SCALED}", right)


def of_compiled(kind: str, device: str) -> Iterator[Line]:
    """Compile the model: scores as without, and weights equal, bit by bit, with and without tracing.

    On the CPU, where inductor takes a minute, by what stands before it.
    """
    backend = "inductor" if device == "cuda" else "aot_eager"
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        raise LeftOutError("inductor needs a C compiler, found none")
    eager, _ = traced(kind, device, "32-true")
    compiled, weights = traced(kind, device, "32-true", compiled_by=backend)
    for score in ("dot", "cosine"):
        error = relative_error(compiled.matrix(score), eager.matrix(score))
        yield _bounded(f"{kind}: compiled by {backend}, {score}", error, BOUNDS["32-true"])
    plain = train(kind, device, "32-true", Path(tempfile.mkdtemp()), compiled_by=backend)
    yield _same_weights(f"{kind}: compiled by {backend}, weights", plain, weights)


class Interrupt(pl.Callback):
    """Ends training at the beginning of a step, once."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Raise at step 5."""
        if trainer.global_step == 5:
            raise InterruptedError


def of_resumed(kind: str, device: str) -> Iterator[Line]:
    """Interrupt a run with scores, an index and snapshots, and resume it: as if it had never stopped, bit by bit."""
    with _Deterministic():
        weights, folders = {}, {}
        for name in ("whole", "resumed"):
            folders[name] = folder = Path(tempfile.mkdtemp())

            def parts(folder: Path = folder) -> list[pl.Callback]:
                return [
                    tracer(folder, side=4), GradientIndexWriter(folder / "index", projection_side=4, segment_steps=2),
                    CheckpointSnapshots(folder / "snapshots", every_n_steps=2),
                    ModelCheckpoint(folder / "checkpoints", every_n_train_steps=3, save_top_k=-1),
                ]  # fmt: skip

            resume = None
            if name == "resumed":
                try:
                    train(kind, device, "32-true", folder, [*parts(), Interrupt()])
                except InterruptedError:
                    (resume,) = (folder / "checkpoints").glob("*.ckpt")
                else:
                    raise AssertionError("the run wasn't interrupted")
            weights[name] = train(kind, device, "32-true", folder, parts(), resume=resume)
    yield _same_weights(f"{kind}: resumed, weights", weights["whole"], weights["resumed"])
    stores = [ScoreStore.open(folder / "online") for folder in folders.values()]
    for score in PROJECTED:
        error = relative_error(stores[1].matrix(score), stores[0].matrix(score))
        yield _bounded(f"{kind}: resumed, {score}", error, 1e-6)
    of_index = [_rows_of_index(folder / "index") for folder in folders.values()]
    yield _bounded(f"{kind}: resumed, rows of the index", relative_error(of_index[1], of_index[0]), 1e-6)
    saved = [load_file(folder / "snapshots" / "step-00000006" / "weights.safetensors") for folder in folders.values()]
    yield _same_weights(f"{kind}: resumed, snapshot after 6 steps", *saved)


CHECKS: tuple[Check, ...] = (
    of_scores, of_training, of_precisions, of_index, of_resumed, of_skipped_steps, of_grids, of_compiled,
)  # fmt: skip


def checked(check: Check, kind: str, device: str) -> Iterator[Line]:
    """Run a check; if it raises, a wrong line says so."""
    try:
        yield from check(kind, device)
    except LeftOutError:
        raise
    except Exception as error:
        yield _raised(f"{kind}: {check.__name__}", error)


class _Deterministic:
    """The setting under which the same training gives the same bits."""

    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *error: object) -> None:
        torch.use_deterministic_algorithms(False)


def _raised(name: str, error: Exception) -> Line:
    return Line(name, in_short(error), "no error", False)


def _bounded(name: str, error: float, bound: float) -> Line:
    return Line(name, f"{error:.1e}", f"{bound:.0e}", error <= bound)


def _same_weights(name: str, one: dict[str, Tensor], other: dict[str, Tensor]) -> Line:
    assert one.keys() == other.keys()
    differing = [key for key in one if not torch.equal(one[key], other[key])]
    figure = f"{len(differing)} differ"
    if differing:
        worst = max(float((one[key].double() - other[key].double()).abs().max()) for key in differing)
        figure += f", by {worst:.0e} at most, {differing[0]} first"
    return Line(name, figure, "0 differ", not differing)


def _correlation(found: ScoreStore, expected: ScoreStore) -> float:
    ids = np.searchsorted(found.example_ids, expected.example_ids)
    return float(np.corrcoef(expected.matrix("dot").ravel(), found.matrix("dot")[ids].ravel())[0, 1])


def _rows_of_index(folder: Path) -> np.ndarray:
    segments = GradientIndex(folder).segments
    return np.concatenate([segment.rows(0, len(segment)).double().numpy() for segment in segments])


def exactness(given: Given) -> Iterator[Finding]:
    """Run all checks of all models, the quickest and the most important ones first."""
    quick = [check for check in CHECKS if check is not of_compiled]
    first, *others = KINDS[:1] if given.tiny else KINDS
    pairs = [(check, first) for check in quick] + [(of_compiled, first)]
    pairs += [(check, kind) for kind in others for check in quick]
    for check, kind in pairs:
        if given.left < ENOUGH_SECONDS:
            yield Finding(f"{kind}: {check.__name__}", {"figure": "left out: no time"})
            continue
        try:
            yield from of_lines(checked(check, kind, given.device))
        except LeftOutError as why:
            yield Finding(f"{kind}: {check.__name__}", {"figure": f"left out: {why}"})
