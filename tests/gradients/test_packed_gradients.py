"""Packed rows: gradients of each document are those of the document alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from ftrace.gradients import Documents, Examples, GradientCapture, LayoutBook, PackedLayout, Rehearsal, UnreadableError
from ftrace.gradients.layouts import by_example, candidates
from helpers import oracle, packed, tiny
from helpers.held_rehearsal import hold
from helpers.packed import MODELS, Corpus, PackedStep, mean_loss, owners_of, share
from helpers.rehearsal_step import randomised

SHAPES: dict[str, tuple[list[list[int]], int]] = {
    "one row": ([[5, 4, 3]], 0),
    "one row of as many documents as tokens can be divided by": ([[2, 6, 4]], 0),
    "one padded row": ([[5, 4, 2, 3]], 4),
    "rows of several lengths": ([[5, 2], [3, 3, 4], [7]], 0),
    "as many documents as a row has tokens": ([[2, 1, 3], [4, 2], [5]], 0),
    "as many documents as rows": ([[4, 2, 3], [], []], 0),
}


def step_of(model: Any, batch: dict[str, Tensor], documents: Any, **given: Any) -> PackedStep:
    return PackedStep(lambda own: [mean_loss(model, own, **given)], batch, documents=documents)


def held(
    model: Any, rows: list[list[int]], padding: int = 0, book: LayoutBook | None = None, **given: Any
) -> Rehearsal:
    corpus, documents = Corpus(), owners_of(rows, padding)
    batch = corpus.pack(rows, padding=padding)
    examples = Examples(documents.total, (), documents)
    step = step_of(model, batch, documents, **given)
    return hold(model, step, lambda i: corpus.alone(model, batch, i), examples, book)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", MODELS)
def test_each_documents_gradients_are_those_of_the_document_alone(kind: str, shape: str) -> None:
    rows, padding = SHAPES[shape]
    rehearsal = held(MODELS[kind](attn_implementation="sdpa"), rows, padding)
    layouts = {rows for key, rows in rehearsal.book.known.items() if key in rehearsal.book.verified}
    assert layouts == {PackedLayout(1, rows=0)}


@pytest.mark.parametrize("kind", MODELS)
def test_eager_attention(kind: str) -> None:
    """Its softmax rounds to float32, in another way for a document alone."""
    rows, padding = SHAPES["one padded row"]
    model, corpus, documents = MODELS[kind](attn_implementation="eager"), Corpus(), owners_of(rows, padding)
    batch, examples = corpus.pack(rows, padding=padding), Examples(documents.total, (), documents)

    def shared(i: int) -> Tensor:
        return share(model, batch, documents.owners, i)

    hold(model, step_of(model, batch, documents), shared, examples)
    together = oracle.matrix(oracle.gradients(model, lambda: [shared(i) for i in range(documents.total)]))
    alone = oracle.gradients(model, lambda: [corpus.alone(model, batch, i) for i in range(documents.total)])
    assert oracle.relative_error(together, oracle.matrix(alone)) < 1e-6


def test_adapters_gradients_are_those_of_the_document_alone() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj", "embed_tokens"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny.llama(), config).double()
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    held(model, [[5, 2], [3, 3, 4]])


def test_what_is_known_of_one_packed_batch_holds_for_others() -> None:
    """With other numbers of rows, documents and tokens."""
    model, book = MODELS["llama"](), LayoutBook()
    for rows in ([[5, 2], [3, 3, 4]], [[4], [2, 2, 3]], [[7, 1, 1, 2, 6]], [[5, 5], [5, 5], [5, 5]]):
        held(model, rows, book=book)


def test_a_mask_of_ones_own_keeps_documents_apart() -> None:
    rows = [[5, 2], [3, 3, 1]]
    owners = owners_of(rows).owners
    apart = (owners[:, :, None] == owners[:, None]) & torch.ones(7, 7, dtype=torch.bool).tril()
    mask = torch.zeros(apart.shape, dtype=torch.float64).masked_fill(~apart, -1e30)[:, None]
    held(packed.opt(), rows, attention_mask=mask)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (packed.opt, {}),
        (tiny.llama, {"attention_mask": torch.ones(2, 10, dtype=torch.int64)}),
        (tiny.gpt2, {"position_ids": None}),
        (tiny.llama, {"use_cache": True}),
    ],
)
def test_attention_that_crosses_documents_is_refused(kind: Any, given: dict[str, Any]) -> None:
    """Also if they are neighbours in one row only."""
    for rows in ([[5, 2], [3, 3, 4]], [[10], [4, 6]]):
        batch, documents, model = Corpus().pack(rows), owners_of(rows), kind()
        with GradientCapture(model, strict=True) as capture:
            step = step_of(model, batch, documents, **given)
            rehearsal = Rehearsal(capture, step, Examples(documents.total, (), documents), LayoutBook())
            with pytest.raises(UnreadableError, match=r"_proj'.* crosses the documents .*position_ids") as error:
                rehearsal.find_rows()
        assert error.value.of_all


def test_padding_that_has_a_gradient_is_refused() -> None:
    rows, model = [[5, 2], [3, 2]], tiny.llama()
    batch, documents = Corpus().pack(rows), owners_of(rows)
    batch["labels"][1, -1] = 3  # which the token of padding before it predicts
    with GradientCapture(model, strict=True) as capture:
        examples = Examples(documents.total, (), documents)
        rehearsal = Rehearsal(capture, step_of(model, batch, documents), examples, LayoutBook())
        rehearsal.find_rows()
        with pytest.raises(UnreadableError, match=r"gradient at tokens of no document.*labels of -100"):
            rehearsal.read(unprojected=True)


PLACES: list[tuple[Sequence[int], PackedLayout]] = [
    ((2, 7, 5), PackedLayout(1, rows=0)),
    ((2, 3, 7, 5), PackedLayout(2, rows=0)),
    ((7, 2, 5), PackedLayout(0, rows=1)),
    ((14, 5), PackedLayout(0)),
    ((3, 14, 5), PackedLayout(1)),
]


@pytest.mark.parametrize(("shape", "layout"), PLACES)
def test_each_token_goes_to_its_document(shape: Sequence[int], layout: PackedLayout) -> None:
    documents = owners_of([[4, 3], [1, 3, 2]])
    examples = Examples(5, (), documents)
    assert layout in list(candidates(shape[:-1], examples))
    numbers = torch.arange(14, dtype=torch.float64).reshape(2, 7)
    tokens = numbers if layout.rows is None or layout.rows < layout.axis else numbers.T
    axes = [1] * len(shape)
    for axis in (layout.axis, layout.rows):
        if axis is not None:
            axes[axis] = shape[axis]
    tensor = tokens.reshape(axes).expand(*shape).contiguous()
    others = tensor.numel() // 14
    split = by_example(tensor, layout, examples)
    assert split.shape == (5, 4 * others // 5, 5)
    for example in range(5):
        own = numbers[documents.owners == example]
        found = split[example].reshape(4, -1)
        assert torch.equal(found[: len(own)], own[:, None].expand(-1, others))
        assert not found[len(own) :].any()
        kept = layout.only(tensor, example, examples)
        assert sorted(kept.unique().tolist()) == sorted({0.0, *own.tolist()})
    assert layout.has_padding(tensor, examples)
    assert not layout.has_padding(layout.choose(tensor, torch.ones(5, dtype=torch.bool), examples), examples)


class Odd(nn.Module):
    """Without attention: flat tokens, a layer without a rule, positions that all rows share, a tensor of many axes."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(tiny.VOCABULARY, 6), nn.Embedding(16, 6)
        self.gate, self.flat, self.heads, self.out = Gate(), nn.Linear(6, 6), nn.Linear(3, 3), nn.Linear(6, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        rows, columns = tokens.shape
        hidden = self.words(tokens) + self.places(torch.arange(columns)[None])
        hidden = self.gate(self.flat(hidden.flatten(0, 1)).tanh())
        heads = self.heads(hidden.reshape(rows, columns, 2, 3).transpose(1, 2)).transpose(1, 2)
        return self.out(heads.reshape(rows * columns, 6)).view(rows, columns, 4)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x * self.weight).sum(-1, keepdim=True).sigmoid()


@pytest.mark.parametrize("rows", [[[5, 2, 3]], [[5, 2], [3, 3, 4]]])
def test_layers_without_a_rule_and_tensors_of_other_shapes(rows: list[list[int]]) -> None:
    model = randomised(Odd())
    corpus, documents = Corpus(), owners_of(rows)
    batch = corpus.pack(rows)

    def share_of(i: int) -> Tensor:
        return model(batch["input_ids"]).sin().sum(-1)[documents.owners == i].sum()

    step = PackedStep(lambda own: [model(own["input_ids"]).sin().sum(-1)[documents.owners >= 0].sum()], batch)
    step.documents = documents
    hold(model, step, share_of, Examples(documents.total, (), documents))


class LastTokens(nn.Module):
    """A head on each document's last token: an axis of documents."""

    def __init__(self, documents: Documents) -> None:
        super().__init__()
        self.documents = documents
        self.words, self.body, self.head = nn.Embedding(tiny.VOCABULARY, 6), nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.body(self.words(tokens)).tanh()
        owners = self.documents.flat
        last = [int((owners == i).nonzero().max()) for i in range(self.documents.total)]
        return self.head(hidden.flatten(0, 1)[last])[:, 0]


def test_a_head_on_the_last_token_of_each_document() -> None:
    rows = [[5, 2], [3, 3, 4]]
    documents = owners_of(rows)
    model, batch = randomised(LastTokens(documents)), Corpus().pack(rows)
    step = PackedStep(lambda own: [model(own["input_ids"]).sin().mean()], batch, documents=documents)
    hold(model, step, lambda i: model(batch["input_ids"])[i].sin() / 5, Examples(5, (), documents))


PARTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "all but the last": lambda hidden, labels: hidden[:, :-1],
    "all but the last, flat": lambda hidden, labels: hidden[:, :-1].flatten(0, 1),
    "all but the first": lambda hidden, labels: hidden[:, 1:],
    "those before a label": lambda hidden, labels: hidden[:, :-1][labels[:, 1:] != -100],
}


@pytest.mark.parametrize("rows", [[[5, 2, 3]], [[5, 2], [3, 3, 4]], [[4, 1, 2, 6]]])
@pytest.mark.parametrize("part", PARTS)
def test_heads_of_some_tokens(part: str, rows: list[list[int]]) -> None:
    model = randomised(nn.Sequential(nn.Embedding(tiny.VOCABULARY, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)))
    batch, documents = Corpus().pack(rows), owners_of(rows)
    batch["labels"][:, 2] = batch["labels"][:, 4] = -100
    documents = Documents(documents.owners, documents.total, batch["labels"] != -100)

    def losses(tokens: Tensor) -> Tensor:
        return model[3](PARTS[part](model[:3](tokens), batch["labels"])).sin().sum(-1).flatten()

    owners = PARTS[part](documents.owners[..., None], batch["labels"]).flatten()

    def share_of(i: int) -> Tensor:
        return losses(batch["input_ids"])[owners == i].sum()

    step = PackedStep(lambda own: [losses(own["input_ids"])[owners >= 0].sum()], batch, documents=documents)
    rehearsal = hold(model, step, share_of, Examples(documents.total, (), documents))
    (layout,) = [rows for key, rows in rehearsal.book.known.items() if key.path == "3"]
    assert isinstance(layout, PackedLayout)
    assert layout.part == part.removesuffix(", flat")


def test_a_last_token_that_predicts_the_next_documents_first_one() -> None:
    """The term of the loss is that of the token that predicts."""
    rows, model = [[5, 2], [3, 4]], tiny.llama()
    batch, documents = Corpus().pack(rows), owners_of(rows)
    batch["labels"] = batch["input_ids"]

    def share_of(i: int) -> Tensor:
        predicted = batch["labels"][:, 1:].masked_fill(documents.owners[:, :-1] != i, -100)
        own = {**batch, "labels": torch.cat([torch.full((2, 1), -100), predicted], 1)}
        return mean_loss(model, own) * (predicted != -100).sum() / batch["labels"][:, 1:].numel()

    hold(model, step_of(model, batch, documents), share_of, Examples(documents.total, (), documents))
