"""Cells of grids: which are known without a run, how they are shared among passes, and which row each of them is."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch

from ftrace.causal import MEDIATORS, CausalSettings, CausalTracer, Mediator, tracer
from ftrace.causal.grids import StackShape, _Work, grid_cells, run_cells
from ftrace.causal.mediators import Cell, Override, make_cell
from ftrace.causal.row_plan import RowPlan
from helpers.per_cell import PerCell
from helpers.traceable_models import FAMILIES, gpt2, prompt, t5
from helpers.tracing import GivenNoise, tokenized, traced

LAYERS, PLACES, SUBJECT = 4, 5, 1


def shape(**changes: Any) -> StackShape:
    given = {"num_layers": LAYERS, "num_positions": PLACES, "sees_ahead": False, "corrupted_from": SUBJECT}
    return StackShape(**{**given, "last_decides": True, **changes})


def known(given: StackShape, mediator: Mediator, window: int = 1) -> dict[tuple[int, int], str]:
    """The run that each known cell equals, by layer and place."""
    cells = grid_cells([mediator], given, window)[mediator]
    found = {(layer, place): given.known(cell) for layer, row in enumerate(cells) for place, cell in enumerate(row)}
    return {cell: name for cell, name in found.items() if name is not None}


BEFORE = {(layer, 0): "corrupted" for layer in range(LAYERS)}  # before the subject
ABOVE = {(LAYERS - 1, place): "corrupted" for place in range(PLACES - 1)}  # the last layer, but for the last place


@pytest.mark.parametrize("mediator", MEDIATORS)
def test_known_cells(mediator: Mediator) -> None:
    whole = mediator == "hidden" or mediator.endswith("_severed")
    clean = {(LAYERS - 1, PLACES - 1): "clean"} if whole else {}
    assert known(shape(), mediator) == {**BEFORE, **ABOVE, **clean}
    assert known(shape(last_decides=False), mediator) == {**BEFORE, **ABOVE}
    assert known(shape(corrupted_from=0), mediator) == {**ABOVE, **clean}
    assert known(shape(sees_ahead=True), mediator) == {}


def test_known_cells_of_windows() -> None:
    """A window that begins in the last layer is one of it alone; a wider one reaches below."""
    assert known(shape(), "mlp", window=2) == BEFORE  # layers 2 and 3
    assert known(shape(), "mlp", window=1) == {**BEFORE, **ABOVE}
    one = shape(num_layers=1)
    assert known(one, "attention", window=10) == {(0, place): "corrupted" for place in range(PLACES - 1)}


@pytest.mark.parametrize("answers", [((5,), (9,)), ((5, 7),)])
def test_cells_are_known_where_they_equal_a_run_and_nowhere_else(answers: Any) -> None:
    """Against one forward for every cell of a model: no cell is claimed wrongly, and no free one is missed."""
    model = FAMILIES["gpt2"].build()
    given = prompt(model, samples=1, answers=answers)
    oracle = PerCell(model, FAMILIES["gpt2"].stacks["decoder"], **given)
    runs = {"clean": oracle.clean(), "corrupted": oracle.corrupted()[0]}
    own = shape(num_positions=6, last_decides=len(answers[0]) == 1)
    for mediator in ("hidden", "mlp_severed", "mlp", "attention"):
        grid = oracle.samples(mediator, 2)[0]
        names = known(own, mediator, 2)
        for layer in range(LAYERS):
            for place in range(6):
                equal = [name for name, run in runs.items() if torch.allclose(grid[:, layer, place], run, 1e-11, 1e-13)]
                assert equal == [names[layer, place]] if (layer, place) in names else not equal, (mediator, layer)


@pytest.mark.parametrize("only", [True, False])
def test_known_cells_are_run_for_the_first_prompt_only(only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts.append(len(args[4]))
        return run_cells(*args, **kwargs)

    monkeypatch.setattr(tracer, "run_cells", counted)
    model = gpt2()
    given = prompt(model, answers=((5,),))
    own = CausalTracer(model, CausalSettings(mediators=("hidden",), only_correct=False, checked=only))
    first, second = (own.trace(tokenized(given), GivenNoise(own.embedding, given["noise"])) for _ in range(2))
    assert counts == ([24, 15] if only else [15, 15])
    for mediator, grid in first.stacks["decoder"].restored.items():
        torch.testing.assert_close(
            torch.from_numpy(second.stacks["decoder"].restored[mediator]), torch.from_numpy(grid), rtol=1e-9, atol=1e-11
        )


def test_an_encoder_that_is_taken_for_one_that_does_not_see_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(**given: Any) -> StackShape:
        return StackShape(**{**given, "sees_ahead": False})

    model = t5()
    given = prompt(model, "encoder", answers=((5,),))
    traced(model, given)
    monkeypatch.setattr(tracer, "StackShape", blind)
    with pytest.raises(ValueError, match=r"found one that differs by .*: tokens see those after them"):
        traced(model, given)
    traced(model, given, checked=False)  # nobody looks


def test_a_decoder_that_sees_ahead() -> None:
    """One whose last feed-forward module mixes all tokens, which the self-test at one token does not tell."""
    model = gpt2()
    model.transformer.h[1].mlp.register_forward_hook(lambda module, args, output: output + output.mean(1, True))
    with pytest.raises(
        ValueError, match="the corrupted run's outcome with something restored at position 0 from layer"
    ):
        traced(model, prompt(model, answers=((5,),)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "module"), [("gpt2", "transformer.h.2.mlp"), ("t5", "decoder.block.1.layer.2.DenseReluDense")]
)
def test_a_model_whose_rows_depend_on_how_many_there_are(family: str, module: str, dtype: torch.dtype) -> None:
    """As one that norms over its batch, or sends tokens to experts of limited capacity."""
    model = FAMILIES[family].build().to(dtype)

    def crowded(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + torch.arange(output.shape[-1]).to(output) * (0.02 * len(output))

    given = prompt(model, answers=((5,),))
    given["noise"] = given["noise"].to(dtype)
    traced(model, given)
    model.get_submodule(module).register_forward_hook(crowded)
    with pytest.raises(
        ValueError, match=r"other results for a row when more rows are added to its batch: .* differ by"
    ):
        traced(model, given)


@pytest.mark.parametrize(
    ("layer", "window", "expected"),
    [
        (0, 10, (0, 5)),
        (5, 10, (0, 10)),
        (6, 10, (1, 11)),
        (11, 10, (6, 12)),
        (4, 1, (4, 5)),
        (4, 2, (3, 5)),
        (4, 3, (3, 6)),
        (4, 4, (2, 6)),
        (0, 3, (0, 2)),
        (11, 3, (10, 12)),
        (7, 100, (0, 12)),
    ],
)
def test_windows_as_the_authors_cut_them(layer: int, window: int, expected: tuple[int, int]) -> None:
    """``range(max(0, layer - window // 2), min(num_layers, layer - (-window // 2)))``."""
    for module in ("mlp", "attention", "cross_attention"):
        cell = make_cell(module, layer, 3, 12, window)  # type: ignore[arg-type]
        override = Override(module, *expected, "clean")  # type: ignore[arg-type]
        assert cell == Cell(3, expected[0], False, (override,))


def test_cells_of_states() -> None:
    severed = Override("mlp", 3, 12, "corrupted")
    assert make_cell("mlp_severed", 2, 0, 12, 10) == Cell(0, 3, True, (severed,))
    assert make_cell("hidden", 2, 0, 12, 10) == Cell(0, 3, True)
    for kind in ("attention", "mlp", "cross_attention"):
        at_last = make_cell(f"{kind}_severed", 11, 4, 12, 1)  # type: ignore[arg-type]
        assert at_last == make_cell("hidden", 11, 4, 12, 7) == Cell(4, 12, True)
    assert (Cell(0, 3, True).changes_from, Cell(0, 3, False).changes_from) == (3, 4)


def random_cells(generator: random.Random, places: int) -> list[Cell]:
    own = shape(num_positions=places)
    mediators = generator.sample(MEDIATORS, generator.randint(1, len(MEDIATORS)))
    grids = grid_cells(mediators, own, generator.randint(1, 9))
    cells = list(dict.fromkeys(cell for layers in grids.values() for row in layers for cell in row))
    generator.shuffle(cells)
    return cells[: generator.randint(1, len(cells))]


@pytest.mark.parametrize("seed", range(20))
def test_halves_are_a_partition(seed: int) -> None:
    generator = random.Random(seed)
    first = generator.randint(0, 3)
    cells = tuple(random_cells(generator, generator.randint(1, 5)))
    whole = _Work(cells, slice(first, first + generator.randint(1, 7)), 9, 2)
    done: Counter[tuple[Cell, int]] = Counter()
    waiting = [whole]
    while waiting:
        one = waiting.pop()
        halves = one.halves()
        if not halves:
            assert (len(one.cells), one.samples.stop - one.samples.start) == (1, 1)
            done[one.cells[0], one.samples.start] += 1
        assert all(0 < half.tokens < one.tokens and (half.width, half.offset) == (9, 2) for half in halves)
        if halves and len({cell.position for cell in one.cells}) > 1 and one.samples.stop - one.samples.start == 1:
            places = [{cell.position for cell in half.cells} for half in halves]
            assert not places[0] & places[1]  # cells of a place stay together as long as there are several
        waiting += halves
    every = [(cell, sample) for cell in cells for sample in range(whole.samples.start, whole.samples.stop)]
    assert done == Counter(every)


@pytest.mark.parametrize("seed", range(20))
def test_every_row_of_a_plan_is_its_cell(seed: int) -> None:
    """Births and replacements, followed through a pass in which a row's number is all that it carries."""
    generator = random.Random(seed)
    cells, samples, offset = random_cells(generator, 6), generator.randint(1, 3), 0
    plan = RowPlan(cells, samples, offset)
    rows: list[tuple[Cell | None, int]] = [(None, -1), *((None, sample) for sample in range(samples))]
    kinds = ("attention", "mlp", "cross_attention")
    for layer in range(LAYERS + 1):
        born = [cell for cell in cells if cell.birth == layer]  # in the order in which they were given
        birth = plan.birth_at(layer)
        assert birth.cells == len(born)
        new = [(cell, sample) for cell in born for sample in range(samples)]
        restored = [(row, cell.position) for row, (cell, _) in enumerate(new) if cell.restores_state]
        assert list(zip(birth.rows.tolist(), birth.positions.tolist(), strict=True)) == restored
        rows += new
        assert plan.noise_of_rows(len(rows)).tolist() == [1 + sample for _, sample in rows]
        for kind in kinds if layer < LAYERS else ():
            expected = {
                (row, cell.position, 0 if override.source == "clean" else 1 + sample)
                for row, (cell, sample) in enumerate(rows)
                for override in (cell.overrides if cell else ())
                if override.module == kind and override.first <= layer < override.stop
            }
            found = plan.replaced_at(kind, layer)  # type: ignore[arg-type]
            assert (found is None) == (not expected)
            if found is not None:
                triples = [one.tolist() for one in found]
                assert set(zip(*triples, strict=True)) == expected
                assert len(triples[0]) == len(expected)
    assert plan.num_rows == len(rows)
    numbers = torch.arange(len(rows)).reshape(-1, 1).repeat(1, 2)
    of_cells = plan.of_cells(numbers)
    assert of_cells.shape == (len(cells), samples, 2)
    for place, cell in enumerate(cells):
        assert [rows[row] for row in of_cells[place, :, 0].tolist()] == [(cell, sample) for sample in range(samples)]


def test_places_are_counted_from_an_offset() -> None:
    severed, window = Override("mlp", 1, 3, "corrupted"), Override("mlp", 0, 1, "clean")
    plan = RowPlan([Cell(4, 1, True, (severed,)), Cell(4, 0, False, (window,))], 2, offset=3)
    assert plan.birth_at(1).positions.tolist() == [1, 1]
    for layer in (0, 1):
        replaced = plan.replaced_at("mlp", layer)
        assert replaced is not None
        assert replaced.positions.tolist() == [1, 1]
    assert plan.replaced_at("mlp", 3) is plan.replaced_at("attention", 1) is None
