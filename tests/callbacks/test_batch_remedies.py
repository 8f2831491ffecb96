"""Refusals of batches, ids and queries name a remedy that works: it is taken from the message and carried out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from ftrace.data import WithExampleIds
from helpers.own_parts import QUERIES, WIDTH, Own, batches, losses, mean_loss, mlp
from helpers.remedies import Run, argument, carry_out_remedy, go_on_where_the_message_says_so, said


def ids(pattern: str) -> Callable[[Run, str], Run]:
    """Make ids as the message does, which is an expression in ``ids``."""

    def carry_out(run: Run, message: str) -> Run:
        expression = said(message, pattern)
        return run.with_ids(lambda given: given if isinstance(given, list) else eval(expression, {"ids": given}))

    return carry_out


def without(made: list[Any], key: str) -> list[Any]:
    return [{name: value for name, value in batch.items() if name != key} for batch in made]


ROWS = [{"x": batch["x"][i], "y": batch["y"][i]} for batch in batches() for i in range(4)]
PAIRS = TensorDataset(*(torch.cat([batch[name] for batch in batches()]) for name in ("x", "y")))


def numbered(name: str, dataset: Any) -> Callable[[Run, str], Run]:
    """Number the rows of a data set as the message does."""

    def carry_out(run: Run, message: str) -> Run:
        wrapped = said(message, r"ftrace\.data\.(WithExampleIds\(.*?\)), or pass")
        made = eval(wrapped, {"WithExampleIds": WithExampleIds, "dataset": dataset})
        return replace(run, **{name: DataLoader(made, batch_size=4)})

    return carry_out


def own_key(name: str, option: str) -> Callable[[Run, str], Run]:
    """Name the key that the ids have in the batch: what ``option=...`` asks for."""

    def carry_out(run: Run, message: str) -> Run:
        assert said(message, rf"or pass ({option})=\.\.\.") == option
        given = getattr(run, name)
        return replace(
            run.asked(**{option: "row"}), **{name: [{**b, "row": torch.arange(4) + 4 * i} for i, b in enumerate(given)]}
        )

    return carry_out


def of_pairs(module: Any, batch: Any) -> Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return F.cross_entropy(module.net(x), y)


PACKED = {"x": torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(0)).double(), "y": torch.tensor([1])}


def packed_loss(module: Any, batch: Any) -> Tensor:
    return F.cross_entropy(module.net(batch["x"]).mean(1), batch["y"])


def one_id_a_row(run: Run, message: str) -> Run:
    """An id for each row that the loader yields, whose number the shapes tell."""
    said(message, "Give an id for each row that the loader yields")
    shapes = eval(said(message, r"found (\{.*?\})\. Give"))
    return replace(
        run, data=[{**one, "example_id": torch.arange(shapes["x"][0]) + 10 * i} for i, one in enumerate(run.data)]
    )


def duplicated() -> Any:
    return DataLoader(WithExampleIds(ROWS[:6]), batch_size=2), DataLoader(WithExampleIds(ROWS[6:]), batch_size=2)


def of_two_loaders(module: Any, batch: Any) -> Tensor:
    several = batch if isinstance(batch, list | tuple) else [batch]
    return torch.stack([mean_loss(module, one) for one in several if one is not None]).sum()


def apart(run: Run, message: str) -> Run:
    numbered_apart = said(message, r"apart, (WithExampleIds\(b, first=\d+\))").replace("\n", " ")
    second = eval(numbered_apart, {"WithExampleIds": WithExampleIds, "b": ROWS[6:]})
    return replace(run, data=(DataLoader(WithExampleIds(ROWS[:6]), batch_size=2), DataLoader(second, batch_size=2)))


def together(run: Run, message: str) -> Run:
    expression = said(message, r"together, (WithExampleIds\(ConcatDataset\(\[a, b\]\)\))")
    names = {"WithExampleIds": WithExampleIds, "ConcatDataset": ConcatDataset, "a": ROWS[:6], "b": ROWS[6:]}
    return replace(run, data=DataLoader(eval(expression, names), batch_size=4))


# Queries


def of_one_loss(module: Any, batch: Any) -> Tensor:
    return losses(module, batch).mean()


def a_loss_for_each(run: Run, message: str) -> Run:
    reduction = eval(said(message, r"take reduction=('\w+')"))
    return replace(run, losses=lambda m, b: F.cross_entropy(m.net(b["x"]), b["y"], reduction=reduction))


def with_losses(run: Run, message: str) -> Run:
    assert said(message, r"Pass (query_losses)=\(module, batch\) -> Tensor\[B\]")
    return replace(run, losses=losses)


def with_learned(run: Run, message: str) -> Run:
    name = said(message, r"pass (\w+)=\(module, batch\) -> Tensor\[B\]")
    return run.asked(**{name: lambda module, batch: module.net(batch["x"]).argmax(1) == batch["y"]})


REFUSED = {
    "no ids": (Run(data=without(batches(), "example_id")), 'no "example_id"', numbered("data", ROWS)),
    "no ids, a key": (Run(data=without(batches(), "example_id")), 'no "example_id"', own_key("data", "id_key")),
    "no ids in tuples": (
        Run(lambda: Own(of_pairs, net=mlp()), data=DataLoader(PAIRS, batch_size=4)),
        "found a list",
        numbered("data", PAIRS),
    ),
    "no query ids": (Run(queries=without(QUERIES, "query_id")), 'no "query_id"', numbered("queries", ROWS)),
    "no query ids, a key": (
        Run(queries=without(batches(), "example_id")),
        'no "query_id"',
        own_key("queries", "query_id_key"),
    ),
    "two ids for four rows": (
        Run(data=[{**one, "example_id": one["example_id"][:2]} for one in batches()]),
        "the batch has 2 ids",
        one_id_a_row,
    ),
    "ids of packed texts": (
        Run(
            lambda: Own(packed_loss, net=mlp()),
            data=[{**PACKED, "example_id": torch.arange(2) + 2 * i} for i in range(3)],
        ),
        "the batch has 2 ids",
        one_id_a_row,
    ),
    "names, then numbers": (
        Run(data=[{**batches()[0], "example_id": ["a", "b", "c", "d"]}, *batches()[1:]]),
        "expected names",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "numbers, then names": (
        Run(data=[*batches()[:2], {**batches()[2], "example_id": ["a", "b", "c", "d"]}]),
        "expected numbers",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "large ids": (
        Run().with_ids(lambda given: given.numpy().astype("object") + 2**64),
        "from -2",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "large unsigned ids": (
        Run().with_ids(lambda given: torch.tensor([2**63 + i for i in given.tolist()], dtype=torch.uint64)),
        "from -2",
        ids(r"\[str\(id\)[^\]]*\]"),
    ),
    "ids with a point": (Run().with_ids(lambda given: given.double()), "float64", ids(r"ids\.long\(\)")),
    "ids with a point, array": (
        Run().with_ids(lambda given: given.double().numpy()),
        "float64",
        ids(r'ids\.astype\("int64"\)'),
    ),
    "a column of ids": (Run().with_ids(lambda given: given[:, None]), "Flatten", ids(r"ids\.reshape\(-1\)")),
    "bytes": (
        Run().with_ids(lambda given: np.array([b"%d" % i for i in given.tolist()])),
        "found bytes",
        ids(r"\[id\.decode\(\)[^\]]*\]"),
    ),
    "ids again": (
        Run(data=DataLoader([{**row, "example_id": i % 4} for i, row in enumerate(ROWS)], batch_size=4)),  # type: ignore[arg-type]
        "twice in epoch 0",
        argument("shared_ids"),
    ),
    "ids again, numbered together": (
        Run(data=DataLoader([{**row, "example_id": i % 4} for i, row in enumerate(ROWS)], batch_size=4)),  # type: ignore[arg-type]
        "twice in epoch 0",
        together,
    ),
    "two loaders, apart": (
        Run(lambda: Own(of_two_loaders, net=mlp()), data=duplicated),
        "number their rows alike",
        apart,
    ),
    "two loaders, together": (
        Run(lambda: Own(of_two_loaders, net=mlp()), data=duplicated),
        "number their rows alike",
        together,
    ),
    "two loaders, shared": (
        Run(lambda: Own(of_two_loaders, net=mlp()), data=duplicated),
        "number their rows alike",
        argument("shared_ids"),
    ),
    "no query losses": (Run(losses=None), "don't know the loss of a query", with_losses),
    "a mean of queries": (Run(losses=of_one_loss), "looks like a mean", a_loss_for_each),
    "learned by nobody": (Run(online={"breakdown": ("learned",)}), "whether a query is right", with_learned),
}


@pytest.mark.filterwarnings("error:Casting complex")  # the ledger's account of what is left out
@pytest.mark.parametrize(("run", "problem", "carry_out"), REFUSED.values(), ids=REFUSED.keys())
def test_the_remedy_in_the_message_works(
    run: Run, problem: str, carry_out: Callable[[Run, str], Run], tmp_path: Path
) -> None:
    carry_out_remedy(run, problem, carry_out, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("run", "problem"), [case[:2] for case in REFUSED.values()], ids=REFUSED.keys())
def test_strict_false_goes_on_where_the_message_says_so(run: Run, problem: str, tmp_path: Path) -> None:
    go_on_where_the_message_says_so(run, problem, tmp_path)
