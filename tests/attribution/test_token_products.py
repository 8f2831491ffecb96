"""Products token by token, against weights of its own for each position, one row at a time, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import ByT5Tokenizer

from ftrace.attribution.token_products import BatchProducts, TokenProductReader, read_examples
from ftrace.models import FactLM
from ftrace.scores import ExampleTokenScores, SequenceScores
from helpers import oracle, tiny
from helpers.gated_tokens import by_token

CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {
        "model_type": "t5", "d_model": 12, "d_kv": 4, "d_ff": 20, "num_layers": 2, "num_heads": 3, "dropout_rate": 0.1,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16, "decoder_start_token_id": 0,
        "pad_token_id": 0, "eos_token_id": 1,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16},
}  # fmt: skip
CONFIGS["t5, head of its own"] = {**CONFIGS["t5"], "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CONFIGS["gpt2, head of its own"] = {**CONFIGS["gpt2"], "tie_word_embeddings": False}


def make(kind: str) -> FactLM:
    torch.manual_seed(0)
    model = FactLM(config={"vocab_size": tiny.VOCABULARY, **CONFIGS[kind]}).double().eval()
    for parameter in model.parameters():  # norms and biases begin at 1 and 0, which would hide mistakes
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def rows_of(kind: str, lengths: list[tuple[int, int]], seed: int = 0) -> list[dict[str, Tensor]]:
    """Batches of one row each, without padding: numbers of tokens of the input, or text, and of the target."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for of_input, of_target in lengths:
        ids = torch.randint(2, tiny.VOCABULARY, (1, of_input), generator=generator)
        labels = torch.randint(2, tiny.VOCABULARY, (1, of_target), generator=generator)
        if kind.startswith("gpt2"):
            labels = torch.cat([torch.full((1, of_input - of_target), -100), ids[:, -of_target:]], 1)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return rows


FILLERS = {"input_ids": 0, "attention_mask": 0, "labels": -100}


def together(rows: list[dict[str, Tensor]], left: bool = False) -> dict[str, Tensor]:
    """One batch, padded on the right, or on the left."""
    batch = {}
    for name, filler in FILLERS.items():
        longest = max(row[name].shape[1] for row in rows)
        padding = [(longest - row[name].shape[1], 0) if left else (0, longest - row[name].shape[1]) for row in rows]
        padded = [nn.functional.pad(row[name], p, value=filler) for row, p in zip(rows, padding, strict=True)]
        batch[name] = torch.cat(padded)
    return batch


def hold(found: BatchProducts, model: FactLM, rows: list[dict[str, Tensor]], query: dict[str, Tensor]) -> None:
    """Each token's value is that of the oracle, and the totals are products of autograd's gradients."""
    (direction,) = oracle.gradients(model, lambda: model.example_losses(query))
    for index, row in enumerate(rows):
        expected = by_token(model, row, direction)
        assert found.sequences.keys() == expected.keys()
        scale = max(float(values.abs().max()) for values in expected.values())
        for name, values in expected.items():
            _, mask, products = found.sequences[name]
            torch.testing.assert_close(products[index][mask[index]], values, rtol=1e-9, atol=1e-9 * scale)
            assert not products[index][~mask[index]].any()
        (gradient,) = oracle.gradients(model, lambda r=row: model.example_losses(r))
        total = oracle.flat(gradient) @ oracle.flat(direction)
        torch.testing.assert_close(found.totals[index], total, rtol=1e-9, atol=1e-9 * scale)


LENGTHS = {
    "of all lengths": [(7, 3), (4, 2), (6, 4), (3, 1)],
    "as many inputs as labels": [(5, 5), (3, 5), (5, 2)],
    "as many labels as pairs of inputs": [(2, 4), (2, 3)],
    "one row": [(4, 4)],
}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_token_is_what_its_positions_give(kind: str, lengths: str) -> None:
    model = make(kind)
    rows = rows_of(kind, [(max(i, t + 1), t) if kind.startswith("gpt2") else (i, t) for i, t in LENGTHS[lengths]])
    (query,) = rows_of(kind, [(6, 3)], seed=1)
    reader = TokenProductReader(model)
    found = reader.products(together(rows), reader.query(query))
    hold(found, model, rows, query)
    assert not found.left_out


def test_padding_on_the_left_is_left_out_as_well() -> None:
    """T5's positions are relative, so that padding on either side gives the same."""
    model = make("t5")
    rows = rows_of("t5", [(6, 3), (4, 3), (3, 3)])
    (query,) = rows_of("t5", [(6, 3)], seed=1)
    reader = TokenProductReader(model)
    hold(reader.products(together(rows, left=True), reader.query(query)), model, rows, query)


class Stub(nn.Module):
    """As much of a FactLM as is differentiated: the loss is a layer's summed output."""

    architecture = "decoder-only"

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4)
        self.layers = nn.Sequential(*layers)
        self.double()

    def example_losses(self, batch: dict[str, Tensor]) -> Tensor:
        read = batch["attention_mask"].unsqueeze(-1)
        return (self.layers(self.table(batch["input_ids"])) * read).flatten(1).sum(1)


def batch_of(ids: list[list[int]]) -> dict[str, Tensor]:
    rows = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.int64),
             "labels": torch.tensor([row])} for row in ids]  # fmt: skip
    return together(rows)


def test_an_embedding_and_a_matrix_by_hand() -> None:
    """A token's gradient has its vector in each row of the matrix, and in the table the sum of the matrix's rows."""
    model = Stub(nn.Linear(4, 5, bias=False))
    examples, query = [[1, 2, 3], [4, 1]], [3, 1, 1]
    reader = TokenProductReader(model)  # type: ignore[arg-type]
    found = reader.products(batch_of(examples), reader.query(batch_of([query])))
    vectors, sums = model.table.weight.detach(), model.layers[0].weight.detach().sum(0)
    _, _, products = found.sequences["text"]
    for row, ids in enumerate(examples):
        by_hand = [sum(5 * vectors[t] @ vectors[s] + (t == s) * (sums @ sums) for s in query) for t in ids]
        torch.testing.assert_close(products[row, : len(ids)], torch.stack(by_hand), rtol=1e-9, atol=1e-12)


class PerHead(nn.Module):
    """A norm in each of two heads, whose positions are no tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(states.unflatten(-1, (2, 2))).flatten(-2)


@pytest.mark.parametrize("layer", [nn.PReLU(), PerHead()], ids=["no positions", "positions of heads"])
def test_what_keeps_no_tokens_is_left_out_by_name_and_counts(layer: nn.Module) -> None:
    model = Stub(nn.Linear(4, 4), layer, nn.Linear(4, 3), nn.Tanh())
    examples, query = [[1, 2, 3], [4, 1]], batch_of([[3, 1, 1]])
    reader = TokenProductReader(model)  # type: ignore[arg-type]
    found = reader.products(batch_of(examples), reader.query(query))
    name = "layers.1.weight" if isinstance(layer, nn.PReLU) else "layers.1.norm"
    assert list(found.left_out) == [name]
    assert found.left_out[name].all()
    (direction,) = oracle.gradients(model, lambda: model.example_losses(query))
    rows = oracle.matrix(oracle.gradients(model, lambda: model.example_losses(batch_of(examples))))
    torch.testing.assert_close(found.totals, rows @ oracle.flat(direction), rtol=1e-9, atol=1e-12)


def test_adapters() -> None:
    """Adapters on an embedding have no layer of their own, so they keep no tokens apart; all others do."""
    model = make("gpt2")
    model.model = tiny.lora()
    model.eval()
    rows = rows_of("gpt2", [(7, 3), (5, 2), (4, 2)])
    (query,) = rows_of("gpt2", [(6, 3)], seed=1)
    reader = TokenProductReader(model)
    found = reader.products(together(rows), reader.query(query))
    (direction,) = oracle.gradients(model, lambda: model.example_losses(query))
    gradients = oracle.matrix(oracle.gradients(model, lambda: model.example_losses(together(rows))))
    torch.testing.assert_close(found.totals, gradients @ oracle.flat(direction), rtol=1e-9, atol=1e-12)
    assert found.left_out
    assert all(".wte." in name for name in found.left_out)
    told = {name: of_name for name, of_name in direction.items() if name not in found.left_out}
    for index, row in enumerate(rows):
        expected = by_token(model, row, told)["text"]
        _, mask, products = found.sequences["text"]
        torch.testing.assert_close(products[index][mask[index]], expected, rtol=1e-9, atol=1e-9)


def test_a_weight_used_outside_of_its_layer_is_refused() -> None:
    model = make("gpt2")
    losses, table = model.example_losses, model.model.get_input_embeddings().weight
    model.example_losses = lambda batch: losses(batch) * table[3].sum()  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="Products by token can't cover"):
        TokenProductReader(model).query(rows_of("gpt2", [(6, 3)])[0])


def test_pieces_of_one_character_are_one_token_with_their_sum() -> None:
    tokenizer = ByT5Tokenizer()
    ids = torch.tensor([[0, *tokenizer("aü", add_special_tokens=False).input_ids]])
    values = torch.tensor([[8.0, 1.0, 2.0, 4.0]])
    products = BatchProducts({"text": (ids, torch.tensor([[False, True, True, True]]), values * (ids > 0))})
    assert list(read_examples([5], products, tokenizer)) == [
        ExampleTokenScores(5, 7.0, [SequenceScores("text", ["a", "ü"], [1.0, 6.0])])
    ]
