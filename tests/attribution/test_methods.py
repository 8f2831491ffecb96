"""Baselines against independent oracles: rank_bm25, and a loop of plain autograd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from rank_bm25 import BM25Plus

from ftrace.attribution import score_by_bm25, score_by_tracin
from ftrace.data import FtraceSynth, SynthCorpus, SynthSettings, fill_in
from ftrace.models import FactLM

SYNTH = SynthSettings(num_entities=8, num_relations=3, num_facts=8, num_test_utterances=3, num_facts_per_utterance=1)


def test_bm25_equals_rank_bm25(tmp_path: Path) -> None:
    corpus = SynthCorpus(SYNTH)
    rows, queries = list(corpus.training_rows()), list(corpus.query_rows())
    queries[0]["inputs_pretokenized"] += " " + queries[0]["inputs_pretokenized"]  # words that come twice, and
    queries[1]["inputs_pretokenized"] += " unheard of"  # words that no row has
    store = score_by_bm25(rows, queries, tmp_path / "bm25")

    def words(row: dict) -> list[str]:
        return fill_in(row["inputs_pretokenized"], row["targets_pretokenized"]).split(" ")

    reference = BM25Plus([words(row) for row in rows], k1=1.5, b=0.75, delta=1)
    for query in queries:
        expected = reference.get_scores(words(query))
        np.testing.assert_allclose(store.scores(query["query_id"]), expected, rtol=1e-5, atol=1e-5)
    assert store.kinds == ("bm25",)
    assert store.manifest["formula"] == "BM25Plus"


@pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
@pytest.mark.parametrize("answers", ["one", "any"])
def test_tracin_equals_a_loop_of_plain_autograd(architecture: str, answers: str, tmp_path: Path) -> None:
    data = FtraceSynth(SYNTH, str(tmp_path / "cache"), architecture, batch_size=100, query_batch_size=4)
    data.prepare_data()
    data.setup()
    t5 = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.1}
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
    torch.manual_seed(0)
    model = FactLM(config=t5 if architecture == "encoder-decoder" else gpt2, answers=answers, embedding_std=0.5)
    model.build(data.tokenizer)
    model.double()
    store = score_by_tracin(model, data.example_dataloader(100), data.query_dataloader(), tmp_path / "tracin")

    def matrix(loader: torch.utils.data.DataLoader) -> torch.Tensor:
        batches = [oracle.gradients(model, lambda b=batch: model.example_losses(b)) for batch in loader]
        return oracle.matrix([row for batch in batches for row in batch])

    examples, queries = matrix(data.example_dataloader(100)), matrix(data.query_dataloader())
    dot = examples @ queries.T
    found = {kind: torch.from_numpy(np.array(store.matrix(kind))).double() for kind in store.kinds}
    assert oracle.relative_error(found["dot"], dot) < 1e-6  # stored as float32
    cosine = dot / examples.norm(dim=1, keepdim=True) / queries.norm(dim=1)
    assert oracle.relative_error(found["cosine"], cosine) < 1e-6
    assert store.example_ids.tolist() == list(range(len(data.train_rows)))
