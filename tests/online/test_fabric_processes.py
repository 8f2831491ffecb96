"""`trace(..., fabric=...)` in two processes with gloo: scores of one, weights, marked methods, resumed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import ProcessExitedException
from torch.utils.data import default_collate

from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import llama_loops, replay, warm_python
from helpers.llama_loops import KINDS, Llama, by_fabric, by_hand, weights


def by_training_step(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """A method that Fabric leads through DDP's forward pass."""
    return model.training_step(batch, 0)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"accumulate": 3, "clip": 0.05},
    "untraced": {"accumulate": 3, "clip": 0.05},
    "killed": {"stop": 2, "integration": "trapezoid"},
    "whole": {"integration": "trapezoid"},
    "marked": {"training_loss": by_training_step},
    "signalled": {},
}


def train(fabric: Fabric, folder: Path, case: str, resume: bool = False) -> None:
    torch.manual_seed(4)
    net = Llama(adapters=True, dtype=torch.float32 if case == "marked" else torch.float64)
    options = {**OPTIONS[case], "checkpoint": folder / "checkpoint.pt", "resume": resume}

    def end(step: int) -> None:
        if step == 3 and fabric.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL if case == "killed" else signal.SIGTERM)

    if case in ("signalled", "killed") and not resume:
        options["before_step"] = end
    by_fabric(net, None if case == "untraced" else folder / case, fabric, **options)
    torch.save(weights(net), folder / f"{case}-{fabric.global_rank}.pt")


def shard(net: Any, mesh: Any) -> Any:
    for part in (*net.model.base_model.model.model.layers, net):
        fully_shard(part, mesh=mesh["data_parallel"])
    return net


def train_sharded(rank: int, folder: Path) -> None:
    """FSDP2, with and without tracing, and where gradients are not synchronized."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(PORT)}  # processes that Fabric has not started
    settings: dict[str, Any] = {"data_parallel_size": 2, "tensor_parallel_size": 1, "process_group_backend": "gloo"}
    fabric = Fabric(accelerator="cpu", devices=2, strategy=ModelParallelStrategy(shard, **settings))
    fabric.launch()
    for target in (folder / "sharded", None):
        net = Llama(adapters=True)
        by_fabric(net, target, fabric, accumulate=3, clip=0.05)
        whole = torch.cat([cast(Any, p).full_tensor().detach().flatten() for p in net.parameters()])
        torch.save(whole, folder / f"sharded-{'untraced' if target is None else 'traced'}-{rank}.pt")
    net = shard(Llama(adapters=True), fabric.strategy.device_mesh)  # type: ignore[attr-defined]
    by_hand(net, folder / "sharded by hand", accumulate=3, clip=0.05)
    net = Llama(adapters=True)
    model = fabric.setup_module(net)
    optimizer: Any = fabric.setup_optimizers(torch.optim.SGD(replay.trained(net).values(), lr=0.1))
    with (
        pytest.raises(ValueError, match=r"no_backward_sync: expected none around run\.backward with ModelParallelStra"),
        trace(
            model, optimizer, llama_loops.mean_loss, fabric=fabric, queries=llama_loops.queries(),
            query_losses=llama_loops.losses, output_dir=folder / "refused",
        ) as run,
        fabric.no_backward_sync(model),
    ):  # fmt: skip
        run.backward(run.loss(default_collate(llama_loops.BATCHES[0])))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the runs of one process and of two."""
    made = []
    for processes in ("1", "2"):
        made.append(tmp_path_factory.mktemp(f"by{processes}"))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = warm_python.run(__file__, made[-1], processes, env=environment, has_trained=True)
        assert done.returncode == 0, done.stderr[-2500:]
    return made[0], made[1]


@pytest.mark.parametrize("case", ["plain", "whole"])
def test_two_processes_have_the_scores_of_one(case: str, folders: tuple[Path, Path]) -> None:
    """Also without synchronization but for the last batch of a window."""
    one, two = (ScoreStore.open(folder / case) for folder in folders)
    assert (one.manifest["processes"], two.manifest["processes"]) == (1, 2)
    assert two.manifest["strategy"] == "DDPStrategy"
    for kind in KINDS:
        scale = np.abs(one.matrix(kind)).max()
        np.testing.assert_allclose(two.matrix(kind), one.matrix(kind), rtol=1e-9, atol=1e-9 * scale)
    assert two.manifest["self_check"] == {"failures": []}


def test_weights_are_the_same_with_and_without(folders: tuple[Path, Path]) -> None:
    ends = [torch.load(folders[1] / f"{case}-{rank}.pt") for case in ("plain", "untraced") for rank in range(2)]
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_a_killed_run_goes_on(folders: tuple[Path, Path]) -> None:
    killed, whole = (ScoreStore.open(folders[1] / case) for case in ("killed", "whole"))
    assert torch.equal(torch.load(folders[1] / "killed-0.pt"), torch.load(folders[1] / "whole-0.pt"))
    for kind in KINDS:
        np.testing.assert_allclose(killed.matrix(kind), whole.matrix(kind), rtol=1e-6, atol=1e-12)


def test_sharded_weights_score_as_whole_ones(folders: tuple[Path, Path]) -> None:
    """With FSDP2, set up by Fabric or by hand; weights are the same with and without."""
    whole = ScoreStore.open(folders[0] / "plain")
    stores = [ScoreStore.open(folders[1] / name) for name in ("sharded", "sharded by hand")]
    assert stores[0].manifest["strategy"] == "ModelParallelStrategy"
    for store in stores:
        for kind in KINDS:
            scale = np.abs(whole.matrix(kind)).max()
            np.testing.assert_allclose(store.matrix(kind), whole.matrix(kind), rtol=1e-8, atol=1e-8 * scale)
    ends = [torch.load(folders[1] / f"sharded-{how}-{rank}.pt") for how in ("traced", "untraced") for rank in range(2)]
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_a_signal_to_one_process_stops_all_before_the_same_batch(folders: tuple[Path, Path]) -> None:
    store = ScoreStore.open(folders[1] / "signalled-incomplete")
    assert (store.manifest["steps"], store.manifest["complete"]) == (4, False)
    assert store.example_ids.tolist() == [2, 12, 22, 32]  # each process by itself writes what it has
    assert (folders[1] / "exit_code").read_text() == str(128 + signal.SIGTERM)
    assert not (folders[1] / "signalled").exists()


def test_methods_that_are_marked_run_in_fabrics_precision(folders: tuple[Path, Path]) -> None:
    """In bfloat16, with DDP around the model, also in rehearsals."""
    one, two = (ScoreStore.open(folder / "marked") for folder in folders)
    assert two.manifest["precision"] == "bf16-mixed"
    assert two.manifest["self_check"] == one.manifest["self_check"] == {"failures": []}
    scale = np.abs(one.matrix("dot")).max()
    np.testing.assert_allclose(two.matrix("dot"), one.matrix("dot"), atol=0.05 * scale)


if __name__ == "__main__":  # what has used threads, as the tests have, can't fork
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    if count > 1:
        PORT = find_free_network_port()
        mp.start_processes(train_sharded, (folder,), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    for case in OPTIONS if count > 1 else ("plain", "whole", "marked"):
        precision = "bf16-mixed" if case == "marked" else "32-true"
        for resume in (False, True) if case == "killed" else (False,):
            fabric = Fabric(accelerator="cpu", devices=count, strategy="ddp_fork", precision=precision)  # type: ignore[arg-type]
            is_ended = case in ("signalled", "killed") and not resume
            with pytest.raises(ProcessExitedException) if is_ended else contextlib.nullcontext() as end:
                fabric.launch(train, folder, case, resume)
            if case == "signalled":
                (folder / "exit_code").write_text(str(end.value.exit_code))
