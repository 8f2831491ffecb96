"""What OnlineTracIn refuses by name: arguments, batches, queries, folders, and loops that it can't follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from ftrace.callbacks import OnlineTracIn
from helpers.language_runs import Module, fit, queries, rows


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, "clipping by value is not linear"),
    ],
    ids=["value clipping"],
)
def test_unsupported_loops_are_refused_by_name(trainer: dict[str, Any], message: str, tmp_path: Path) -> None:
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online")
    loader = DataLoader(rows("gpt2", 4), batch_size=4)
    with pytest.raises(Exception, match=message):
        fit(Module("gpt2", torch.float32), loader, tmp_path, [callback], **trainer)
    assert not (tmp_path / "online").exists()


class Closure(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())


def test_lbfgs_is_refused_by_name(tmp_path: Path) -> None:
    callback = OnlineTracIn(queries("gpt2"), tmp_path / "online")
    with pytest.raises(ValueError, match="LBFGS evaluates a batch several times"):
        fit(Closure("gpt2", torch.float32), DataLoader(rows("gpt2", 4), batch_size=4), tmp_path, [callback])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": ("wise",)}, r"scores: expected some of \['dot', 'update', 'cosine', .*\], found \('wise',\)"),
        ({"scores": "dot"}, "scores: expected a list"),
        ({"scores": ()}, "scores: expected some of"),
        ({"refresh_every_n_steps": 0}, "refresh_every_n_steps: expected at least 1, found 0"),
        ({"projection_side": 0}, "projection_side: expected 1 to 4,096, found 0"),
        ({"integration": "simpson"}, r"integration: expected one of \['left', 'trapezoid'\], found 'simpson'"),
        ({"momentum": "none"}, r"momentum: expected one of \['eventual', 'exact'\], found 'none'"),
        ({"momentum": "exact"}, 'momentum="exact" is of the kind "update": expected it in scores'),
        ({"breakdown": ("head",)}, "breakdown: expected some of"),
        ({"staleness_every": -1}, "staleness_every: expected at least 0, found -1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OnlineTracIn(**arguments)


def test_batches_without_ids_say_what_to_do(tmp_path: Path) -> None:
    nameless = [{name: value for name, value in row.items() if name != "example_id"} for row in rows("gpt2", 4)]
    with pytest.raises(
        ValueError, match=r'batch has no "example_id": found keys \[.*Add ids with ftrace.data.WithExampleIds'
    ):
        fit(
            Module("gpt2"),
            DataLoader(nameless, batch_size=4),
            tmp_path,
            [OnlineTracIn(queries("gpt2"), tmp_path / "o")],
        )


def test_no_queries_no_losses_and_repeated_queries_say_what_to_do(tmp_path: Path) -> None:
    loader = DataLoader(rows("gpt2", 4), batch_size=4)
    with pytest.raises(ValueError, match=r"no queries: expected queries=DataLoader"):
        fit(Module("gpt2"), loader, tmp_path, [OnlineTracIn(output_dir=tmp_path / "o")])
    twice = rows("gpt2", 2, key="query_id") * 2
    with pytest.raises(ValueError, match=r'expected each "query_id" once'):
        fit(Module("gpt2"), loader, tmp_path, [OnlineTracIn(DataLoader(twice, batch_size=2), tmp_path / "o")])
    module = Module("gpt2")
    module.model.can_generate = lambda: False
    with pytest.raises(ValueError, match=r"don't know the loss of a query: Module has no example_losses"):
        fit(module, loader, tmp_path, [OnlineTracIn(queries("gpt2"), tmp_path / "o")])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "online").mkdir()
    (tmp_path / "online" / "thesis.txt").write_text("three years")
    with pytest.raises(ValueError, match="won't write scores to"):
        fit(
            Module("gpt2"), DataLoader(rows("gpt2", 4), batch_size=4), tmp_path,
            [OnlineTracIn(queries("gpt2"), tmp_path / "online")],
        )  # fmt: skip
    assert (tmp_path / "online" / "thesis.txt").read_text() == "three years"


def test_two_instances_with_one_folder_are_refused(tmp_path: Path) -> None:
    loader = DataLoader(rows("gpt2", 4), batch_size=4)
    both = [OnlineTracIn(queries("gpt2"), tmp_path / "online"), OnlineTracIn(queries("gpt2"))]
    with pytest.raises(ValueError, match=r"two of them write to .* Give each an output_dir of its own"):
        fit(Module("gpt2"), loader, tmp_path, both)
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `OnlineTracIn`"):
        fit(Module("gpt2"), loader, tmp_path, [OnlineTracIn(queries("gpt2")) for _ in range(2)])
