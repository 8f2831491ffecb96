"""Packed rows in training: each document is an example, whatever the loop; or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening

from ftrace.callbacks import GradientIndexWriter
from ftrace.index import GradientIndex
from ftrace.online import trace
from ftrace.scores import ScoreStore
from helpers import own_parts, tiny
from helpers.oracle import relative_error
from helpers.own_parts import RATE, Own, by_hand, found
from helpers.packed import Corpus, mean_loss, net_of, opt, owners_of, qwen2

ROWS: list[list[list[int]]] = [  # lengths of documents by batch and row
    [[5, 4, 3]],
    [[2, 6, 3, 1]],
    [[5, 2], [3, 3, 4]],
    [[4, 2, 3], [8], [1, 1, 7, 2]],
]
QUERIES = [{"input_ids": torch.tensor([[2, 5, 7, 3, 11, 4], [9, 2, 6, 6, 3, 8]]), "query_id": torch.arange(2)}]
Batches = list[dict[str, Tensor]]


def query_losses(model: Any, batch: Any) -> Tensor:
    logits = net_of(model)(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:], reduction="none").sum(1)


def packed(rows: Sequence[Sequence[Sequence[int]]] = ROWS, padding: int = 0) -> tuple[Corpus, Batches]:
    corpus = Corpus()
    return corpus, [corpus.pack(of_batch, padding=padding) for of_batch in rows]


def traced(model: nn.Module, batches: Batches, folder: Path, accumulate: int = 1, **settings: Any) -> ScoreStore:
    """Train by ``ftrace.online.trace``."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loss = settings.pop("loss", mean_loss)
    queries = own_parts.loader(QUERIES)
    settings = {"precision": "64-true", "refresh_every_n_steps": 1, "query_losses": query_losses, **settings}
    with trace(model, optimizer, loss, queries=queries, output_dir=folder, **settings) as run:
        for index, batch in enumerate(batches):
            run.backward(run.loss(batch) / accumulate)
            if (index + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return ScoreStore.open(folder)


def right(model: Any, corpus: Corpus, batches: Batches) -> Tensor:
    return by_hand(model, batches, corpus.alone, QUERIES, query_losses, mean_loss)


@pytest.mark.parametrize("kind", [tiny.llama, qwen2])
@pytest.mark.parametrize("padding", [0, 3])
def test_scores_of_documents_are_those_of_each_alone(kind: Any, padding: int, tmp_path: Path) -> None:
    """Batches that follow each other have other rows, documents and lengths."""
    corpus, batches = packed(padding=padding)
    model = kind()
    store = traced(copy.deepcopy(model), batches, tmp_path / "s")
    assert store.example_ids.tolist() == list(range(len(corpus.documents)))
    assert relative_error(found(store), right(model, corpus, batches)) < 1e-9


@pytest.mark.parametrize(
    "kind",
    [{}, {"use_dora": True}, {"use_rslora": True, "modules_to_save": ["lm_head"]}],
    ids=["LoRA", "DoRA", "rsLoRA"],
)
def test_adapters_under_lightning(kind: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **kind)
    module = Own(mean_loss, net=peft.get_peft_model(tiny.llama(), config))
    corpus, batches = packed()
    expected = right(module, corpus, batches)
    store = own_parts.traced(module, batches, tmp_path, QUERIES, query_losses)
    assert relative_error(found(store), expected) < 1e-9


def test_accumulated_batches_and_other_kinds(tmp_path: Path) -> None:
    """As under the replay of documents that have a row each, where nothing is packed."""
    corpus, batches = packed()
    stores = []
    for name in ("packed", "rows"):
        given = batches if name == "packed" else [unpacked(corpus, batch) for batch in batches]
        model = tiny.llama()
        kinds = {"scores": ("dot", "cosine", "update"), "momentum": "exact"}
        stores.append(traced(model, given, tmp_path / name, 2, **kinds))
    for kind in ("dot", "cosine", "update"):
        assert relative_error(found(stores[0], kind), found(stores[1], kind)) < 1e-9


def unpacked(corpus: Corpus, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same documents with a padded row each; sums of the loss are the same."""
    ids = batch["example_id"].tolist()
    longest = max(len(corpus.documents[number]) for number in ids)
    tokens = torch.zeros(len(ids), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for row, number in enumerate(ids):
        document = corpus.documents[number]
        tokens[row, : len(document)], mask[row, : len(document)] = document, 1
    labels = tokens.masked_fill(mask == 0, -100)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels, "example_id": batch["example_id"]}


def test_projected_scores_are_those_of_rows(tmp_path: Path) -> None:
    corpus, batches = packed()
    settings = {"projection_side": 4, "scores": ("dot", "learning")}
    ours = traced(tiny.llama(), batches, tmp_path / "packed", **settings)
    theirs = traced(tiny.llama(), [unpacked(corpus, batch) for batch in batches], tmp_path / "rows", **settings)
    for kind in ("dot", "learning"):
        assert relative_error(found(ours, kind), found(theirs, kind)) < 1e-9


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    _, batches = packed(padding=1)
    models = [tiny.llama(), tiny.llama()]
    traced(models[0], batches, tmp_path / "s")
    optimizer = torch.optim.SGD(models[1].parameters(), lr=RATE)
    for batch in batches:
        mean_loss(models[1], batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_document_ids_tell_documents_apart(tmp_path: Path) -> None:
    """Any numbers, also the same ones in each row; negative ones are padding."""
    corpus, batches = packed([[[5, 2], [3, 3, 4]]], padding=2)
    model = tiny.llama()
    expected = right(model, corpus, batches)
    numbers = torch.tensor([[7] * 5 + [3] * 2 + [-1] * 5, [7] * 3 + [1] * 3 + [7] * 4 + [-5] * 2])
    batches[0]["document_ids"] = numbers
    store = traced(model, batches, tmp_path / "s", loss=mean_loss)
    assert relative_error(found(store), expected) < 1e-9


def test_as_many_documents_as_rows(tmp_path: Path) -> None:
    """The last rows are padding alone."""
    corpus, batches = packed([[[4, 2, 3], [], []], [[2, 5], [7], []]])
    model = tiny.llama()
    expected = right(model, corpus, batches)
    assert relative_error(found(traced(model, batches, tmp_path / "s")), expected) < 1e-9


def test_one_id_for_each_row_makes_rows_the_examples(tmp_path: Path) -> None:
    corpus, batches = packed([[[5, 2], [3, 3, 4]], [[4, 4], [2, 6]]])
    owners = [owners_of(rows).owners for rows in ([[5, 2], [3, 3, 4]], [[4, 4], [2, 6]])]
    model = tiny.llama()
    documents = right(model, corpus, batches)
    firsts = [0, 5]
    by_row = torch.stack(
        [
            documents[first + row[row >= 0].unique()].sum(0)
            for first, of_batch in zip(firsts, owners, strict=True)
            for row in of_batch
        ]
    )
    rows = [{**batch, "example_id": torch.tensor([2 * i, 2 * i + 1])} for i, batch in enumerate(batches)]
    assert relative_error(found(traced(model, rows, tmp_path / "s")), by_row) < 1e-9


@pytest.mark.parametrize("multiple", [None, 8])
def test_batches_of_trls_collator(multiple: int | None, tmp_path: Path) -> None:
    """Padded to a multiple, each token of padding has position 0, as a document would."""
    sft = pytest.importorskip("trl.trainer.sft_trainer")
    corpus, batches = packed()
    collate = sft.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=multiple)
    collated = []
    for batch in batches:
        ids = batch["example_id"].tolist()
        made = collate([{"input_ids": corpus.documents[number].tolist()} for number in ids])
        collated.append({**made, "example_id": batch["example_id"]})
    model = tiny.llama()
    expected = right(model, corpus, collated)
    assert relative_error(found(traced(model, collated, tmp_path / "s")), expected) < 1e-9


def test_rows_that_trl_has_packed(tmp_path: Path) -> None:
    """Its data sets have rows of several documents with their lengths, which its collator joins to a single row."""
    sft = pytest.importorskip("trl.trainer.sft_trainer")
    corpus, batches = packed(ROWS[2:])
    collate = sft.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    collated = []
    for batch, lengths in zip(batches, ROWS[2:], strict=True):
        kept = [tokens[: sum(of_row)].tolist() for tokens, of_row in zip(batch["input_ids"], lengths, strict=True)]
        rows = [{"input_ids": t, "seq_lengths": of_row} for t, of_row in zip(kept, lengths, strict=True)]
        collated.append({**collate(rows), "example_id": batch["example_id"]})
    model = tiny.llama()
    expected = right(model, corpus, collated)
    assert relative_error(found(traced(model, collated, tmp_path / "s")), expected) < 1e-9


def test_batches_of_transformers_collator_by_its_models_own_loss(tmp_path: Path) -> None:
    corpus, batches = packed(ROWS[:2])
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True, return_tensors="pt")
    collated = []
    for batch in batches:
        ids = batch["example_id"].tolist()
        made = collate([{"input_ids": corpus.documents[number].tolist()} for number in ids])
        collated.append({**made, "example_id": batch["example_id"]})
    model = tiny.llama(use_cache=False)
    expected = right(model, corpus, collated)
    store = traced(model, collated, tmp_path / "s", loss=None)
    assert relative_error(found(store), expected) < 1e-6  # the model's own loss is computed in float32


def test_an_index_has_a_row_for_each_document(tmp_path: Path) -> None:
    corpus, batches = packed(ROWS[:3])
    rows = []
    for name in ("packed", "rows"):
        given = batches if name == "packed" else [unpacked(corpus, batch) for batch in batches]
        writer = GradientIndexWriter(tmp_path / name, layout="parameter", side=4, dtype="float64")
        own_parts.trainer(tmp_path, [writer]).fit(Own(mean_loss, net=tiny.llama()), own_parts.loader(given))
        segments = GradientIndex(tmp_path / name).segments
        assert [number for segment in segments for number in segment.ids] == list(range(12))
        rows.append(torch.cat([segment.rows(0, len(segment)) for segment in segments]))
    assert relative_error(*rows) < 1e-9


class EverySecond(nn.Module):
    """A layer on every second token of a row, whoever's it is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.zeros_like(x)
        kept[:, ::2] = self.inner(x[:, ::2])
        return x + kept


def of_every_second() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(tiny.VOCABULARY, 6), EverySecond(), nn.Linear(6, tiny.VOCABULARY)).double()


def losses_of_tokens(model: nn.Module, batch: Any) -> Tensor:
    """``[R, T - 1]``."""
    labels = batch.get("labels", batch["input_ids"])[:, 1:]
    logits = net_of(model)(batch["input_ids"])[:, :-1].transpose(1, 2)
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")


def test_a_layer_on_some_tokens_is_read_off_the_module_around_it(tmp_path: Path) -> None:
    _, batches = packed(ROWS[2:])
    model = of_every_second()

    def share(model: Any, batch: Any, i: int) -> Tensor:
        owners = owners_of(ROWS[2 + int(batch["example_id"][0] > 0)]).owners[:, :-1]
        return losses_of_tokens(model, batch)[owners == i].sum()

    def loss(model: Any, batch: Any) -> Tensor:
        return losses_of_tokens(model, batch).sum()

    def of_queries(model: Any, batch: Any) -> Tensor:
        return losses_of_tokens(model, batch).sum(1)

    expected = by_hand(model, batches, share, QUERIES, of_queries, loss)
    store = traced(model, batches, tmp_path / "s", loss=loss, query_losses=of_queries)
    assert relative_error(found(store), expected) < 1e-9
    assert set(store.manifest["rows"]["read_off_outer_modules"]) == {"1.inner.weight", "1.inner.bias"}


# What is refused


def test_a_layer_on_some_tokens_alone_is_refused_by_name(tmp_path: Path) -> None:
    _, batches = packed()

    def loss(model: Any, batch: Any) -> Tensor:
        return model[2](model[0](batch["input_ids"])[:, ::2]).sin().sum()

    def of_queries(model: Any, batch: Any) -> Tensor:
        return losses_of_tokens(model, batch).sum(1)

    with pytest.raises(
        ValueError, match=r"layer '2' .*documents of packed rows: expected all of their tokens, \[1, 12,"
    ):
        traced(of_every_second(), batches, tmp_path / "s", loss=loss, query_losses=of_queries)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("kind", "given"),
    [(opt, {}), (tiny.llama, {"attention_mask": "ones"}), (tiny.gpt2, {"position_ids": None})],
)
def test_attention_that_crosses_documents_is_refused_by_name(
    kind: Any, given: dict[str, Any], strict: bool, tmp_path: Path
) -> None:
    _, batches = packed()

    def loss(model: Any, batch: Any) -> Tensor:
        ones = {"attention_mask": torch.ones_like(batch["input_ids"])} if given.get("attention_mask") else given
        return mean_loss(model, batch, **ones)

    with pytest.raises(ValueError, match=r"layer '.*_proj'.*crosses the documents.*use_cache=False"):
        traced(kind(), batches, tmp_path / "s", loss=loss, strict=strict)


def test_attention_that_crosses_from_another_kind_of_batch_on_is_refused(tmp_path: Path) -> None:
    _, batches = packed([[[5, 4, 3]]] * 3)
    batches[-1]["attention_mask"] = torch.ones_like(batches[-1]["input_ids"])
    with pytest.raises(ValueError, match="crosses the documents"):
        traced(tiny.llama(), batches, tmp_path / "s")


@pytest.mark.parametrize(
    ("rows", "ids", "expected"),
    [
        ([[5, 4, 3]], 4, "4 ids .* but 3 documents in 1 packed rows"),
        ([[5, 2], [3, 3, 4]], 4, r"4 ids .* but 5 documents in 2 packed rows \(8 with .*\), "),
        ([[5, 2], [3, 3, 1]], 6, r"6 ids .* but 4 documents in 2 packed rows \(5 with .*\), "),
    ],
)
def test_another_number_of_ids_is_refused(rows: list[list[int]], ids: int, expected: str, tmp_path: Path) -> None:
    _, batches = packed([rows])
    batches[0]["example_id"] = torch.arange(ids)
    with pytest.raises(ValueError, match=f'{expected}.*told apart by "position_ids".*id for each document'):
        traced(tiny.llama(), batches, tmp_path / "s")
    batches[0]["document_ids"] = owners_of(rows).owners
    with pytest.raises(ValueError, match=f'{ids} ids .*told apart by "document_ids"'):
        traced(tiny.llama(), batches, tmp_path / "s")


def test_packed_rows_of_several_dataloaders_are_refused(tmp_path: Path) -> None:
    _, batches = packed([[[5, 4, 3]]] * 2)

    def loss(model: Any, batch: Any) -> Tensor:
        return mean_loss(model, batch["a"]) + mean_loss(model, batch["b"])

    with pytest.raises(ValueError, match="packed rows from one dataloader, found several"):
        traced(tiny.llama(), [{"a": batches[0], "b": batches[1]}], tmp_path / "s", loss=loss)


def test_a_batch_without_tokens_is_refused(tmp_path: Path) -> None:
    _, batches = packed([[[5, 4, 3]]])
    hidden = batches[0]
    batch = {"document_ids": owners_of([[5, 4, 3]]).owners, "example_id": hidden["example_id"]}

    def loss(model: Any, batch: Any) -> Tensor:
        return mean_loss(model, hidden)

    with pytest.raises(ValueError, match=r"nothing in it holds their tokens.*Let the batch hold the input_ids"):
        traced(tiny.llama(), [batch], tmp_path / "s", loss=loss)
