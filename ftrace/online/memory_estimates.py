"""Estimates of what a run needs beside plain training, from its settings and from what has been measured."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ftrace.files.free_space import free_addresses, free_disk, free_memory
from ftrace.gradients import layer_of
from ftrace.online.memory_needs import MemoryNeeds, Place
from ftrace.online.planned import batch_size, planned_examples
from ftrace.online.precision import is_half
from ftrace.online.processes import gather_objects, num_processes, process_rank
from ftrace.online.refresh_schedule import typical_interval
from ftrace.online.scoring.momentum import horizon_of
from ftrace.online.scoring.row_blocks import BlockMemory
from ftrace.online.traced_run import TracedRun
from ftrace.scores.ledger import COLUMNS
from ftrace.scores.row_ranges import RANGE_BYTES

_BYTES_OF_ID = 200  # of an example's id in dictionaries, and of its row


class MemoryEstimates:
    """Estimates of the memory of one run.

    Args:
        run: The run, before its first batch.
        blocks: The memory of its scores.
        output_dir: Where its scores are written.

    Attributes:
        of_queries: Measured bytes of the queries' gradients; None before there are any.
        of_batch: Measured bytes of the first batch's contributions that are held; None before there are any.
    """

    def __init__(self, run: TracedRun, blocks: BlockMemory, output_dir: Path) -> None:
        self._run = run
        self._blocks = blocks
        self._output_dir = output_dir
        self._free, self._free_addresses = free_memory_here(), free_addresses()
        self.of_queries: int | None = None
        self.of_batch: int | None = None

    def needs(self) -> MemoryNeeds:
        """Compute what is needed, as far as that is known by now."""
        run = self._run
        examples = planned_examples(run.loop)
        candidates = run.sums.candidates
        if candidates is not None:
            kept = len(run.sums) if run.sums.is_ragged else len(candidates)
            examples = kept if examples is None or run.sums.is_ragged else min(kept, examples)
        count = 1000 if examples is None else examples
        cells = count if run.sums.is_ragged else count * len(run.sums.query_ids)
        scores = cells * run.sums.dtype.itemsize * self.matrices
        at_rank_0 = scores if num_processes() > 1 and process_rank() == 0 else 0  # the sums over all processes
        in_memory = min(scores + at_rank_0, int(min(self._blocks.budget, 2**62)))
        in_file = scores + at_rank_0 - in_memory
        memory = {
            "scores": in_memory,
            "ids": count * _BYTES_OF_ID,
            "a batch's scores": self._of_batch_scores(count),
            "ledger's rows": self._of_ledger_rows(),
            "record of answers": self._of_answers(),
            "writing": 6 * min(RANGE_BYTES, scores),
        }
        on_device = {
            "query gradients": self._of_queries(),
            "held contributions": self._of_held(),
            "ledger": self._of_ledger_vectors(),
            "whitening": self._of_whitening(),
        }
        disk = {"the store": scores if process_rank() == 0 else 0, "scores in a file": in_file}
        device = run.loop.device
        places = [Place("memory", {**memory, **(on_device if device.type == "cpu" else {})}, self._free)]
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            places.append(Place("memory of the device", on_device, free))
        places.append(Place("disk", disk, free_disk(self._output_dir)))
        if in_file and self._free_addresses < math.inf:  # a limit that counts mapped files, too
            places.append(Place("address space", {**memory, "scores": in_memory + in_file}, self._free_addresses))
        return MemoryNeeds(places, examples)

    @property
    def matrices(self) -> int:
        """The number of matrices of scores."""
        return self._matrices_of_batch + self._epochs * len(self._run.rules.kinds)

    @property
    def _matrices_of_batch(self) -> int:
        rules = self._run.rules
        layers = {layer_of(name) for name in self._run.parameters.covered.by_name} if "layer" in rules.breakdown else ()
        return len(rules.kinds) * (1 + len(layers) + 2 * ("learned" in rules.breakdown))

    @property
    def _epochs(self) -> int:
        """The number of epochs that have parts of their own; 1 if it isn't known."""
        epochs = self._run.loop.train_loaders.epochs
        return 0 if "epoch" not in self._run.rules.breakdown else int(epochs) if epochs < math.inf else 1

    def _of_batch_scores(self, count: int) -> int:
        """A batch's scores as they are computed, and those that are added to the sums."""
        size = batch_size(self._run.loop)
        rows = min(size, count) if size < math.inf else 0
        return int(2 * rows * len(self._run.sums.query_ids) * self._run.sums.dtype.itemsize * self._matrices_of_batch)

    def _size_of_gradient(self) -> int:
        """Bytes of one gradient over all covered parameters, projected if there is a projection."""
        projection, itemsize = self._run.rules.projection, self._run.sums.dtype.itemsize
        parameters = self._run.parameters.covered.by_name.values()
        if projection is None:
            return sum(parameter.numel() for parameter in parameters) * itemsize
        return len(parameters) * projection.side**2 * itemsize

    def _of_queries(self) -> int:
        if self.of_queries is not None:
            return self.of_queries * (2 if self._run.rules.trapezoid else 1)
        scoring = self._run.scoring
        known = self._run.rules.projection is not None
        known = known and (scoring.reduces_queries or not scoring.needs_queries_unprojected)
        return 2 * len(self._run.sums.query_ids) * self._size_of_gradient() if known else 0

    def _of_held(self) -> int:
        """Contributions that wait: for their step, for the next refresh, or until momentum has no effect any more."""
        rules, loop, settings = self._run.rules, self._run.loop, self._run.settings
        steps = typical_interval(settings.refresh_every) if rules.trapezoid else 1
        of_directions = 0
        if rules.exact_momentum:
            horizon = max((horizon_of(decay) for decay in _decays(loop.optimizers)), default=1)
            steps += horizon + max(1, horizon // 2)
            of_directions = steps * len(self._run.sums.query_ids) * self._size_of_gradient()
        planned = loop.train_loaders.batches
        batches = min(steps * loop.batches_per_step, planned)
        held = self.of_batch
        if held is None:
            size = batch_size(loop)
            is_known = rules.projection is not None and size < math.inf and self._run.scoring.holds(elementwise=True)
            held = int(size * self._size_of_gradient()) if is_known else 0
        if rules.trapezoid:  # scores at the left end of the interval are held, too
            held += self._of_batch_scores(2**62) // 2
        return int(batches * held + of_directions)

    def _of_ledger_vectors(self) -> int:
        """A copy of the weights, and sums of what moved them: vectors of the parameters' size."""
        ledger = self._run.ledger
        if ledger is None:
            return 0
        parameters = list(self._run.parameters.all().values())
        copies, sums = int(ledger.trapezoid or not ledger.projects_all), int(ledger.trapezoid)
        if ledger.accounts:
            groups = [group for optimizer in self._run.loop.optimizers for group in optimizer.param_groups]
            decays, rounds = (
                any(group.get("weight_decay") for group in groups),
                any(is_half(p.dtype) for p in parameters),
            )
            copies += (decays or rounds) and not ledger.trapezoid
            sums += any(_decays(self._run.loop.optimizers)) + decays + rounds
            sums += ledger.projection is not None and not ledger.projects_all
            sums += 2 * ledger.exact_momentum
        of_sums = sum(p.numel() * max(p.element_size(), torch.float32.itemsize) for p in parameters)
        return copies * _bytes_of_parameters(parameters) + sums * (2 if ledger.trapezoid else 1) * of_sums

    def _of_ledger_rows(self) -> int:
        return 0 if self._run.ledger is None else self._of_refreshes(8 * len(COLUMNS))

    def _of_answers(self) -> int:
        """A byte for each query and refresh."""
        return 0 if self._run.queries.learned is None else self._of_refreshes(1)

    def _of_refreshes(self, itemsize: int) -> int:
        """Bytes of what is kept of each query at each refresh, which is there twice more when it is written."""
        planned = self._run.loop.train_loaders.batches
        if planned == math.inf:
            return 0
        interval = typical_interval(self._run.settings.refresh_every)
        refreshes = planned / self._run.loop.batches_per_step / interval
        return int(3 * refreshes * len(self._run.sums.query_ids) * itemsize)

    def _of_whitening(self) -> int:
        whitened, projection = self._run.scoring.whitened, self._run.rules.projection
        if whitened is None or projection is None:
            return 0
        matrix = projection.side**4 * self._run.sums.dtype.itemsize
        return len(whitened.names) * (2 * matrix + len(self._run.sums.query_ids) * projection.side**2 * 4) + 3 * matrix


def _bytes_of_parameters(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _decays(optimizers: Iterable[torch.optim.Optimizer]) -> list[float]:
    """The factors by which momentum decays."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [float(group.get("momentum") or (group.get("betas") or (group.get("beta1") or 0.0,))[0]) for group in groups]


def free_memory_here() -> float:
    """Return this process's share of the bytes that are free on this machine. All processes must call it."""
    hosts = gather_objects(socket.gethostname())
    return free_memory() / hosts.count(socket.gethostname())
