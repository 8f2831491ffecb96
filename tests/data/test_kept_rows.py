"""Leaving training rows out: the batches are the collator's, and the order is the run's own without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ftrace.data import CollatedRows, FtraceSynth, KeptRows, SynthSettings

SYNTH = SynthSettings(num_entities=12, num_relations=3, num_facts=6, num_test_utterances=2, num_facts_per_utterance=1)


@pytest.fixture(scope="module", params=["encoder-decoder", "decoder-only"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FtraceSynth:
    data = FtraceSynth(SYNTH, str(tmp_path_factory.mktemp("data")), architecture=request.param, batch_size=16)
    data.prepare_data()
    data.setup()
    return data


def ids(loader: DataLoader) -> list[int]:
    return [one for batch in loader for one in batch["example_id"].tolist()]


def test_batches_are_bit_by_bit_what_the_collator_makes(data: FtraceSynth) -> None:
    rows, collate = CollatedRows(data), data.example_dataloader().collate_fn
    generator = np.random.default_rng(0)
    for size in (1, 2, 5, 16):
        places = generator.permutation(len(rows))[:size].tolist()
        expected, found = collate([data.train_rows[place] for place in places]), rows.batch(places)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_order_is_the_runs_own_without_the_rows_left_out(data: FtraceSynth) -> None:
    is_kept = np.random.default_rng(1).random(len(data.train_rows)) < 0.6
    loader = KeptRows(data, CollatedRows(data), is_kept).train_dataloader()
    assert len(loader) == -(-is_kept.sum() // 16)
    torch.manual_seed(3)
    whole = [ids(data.train_dataloader()) for _ in range(2)]
    torch.manual_seed(3)
    assert [ids(loader) for _ in range(2)] == [[one for one in epoch if is_kept[one]] for epoch in whole]


def test_an_order_seed_gives_an_order_of_its_own(data: FtraceSynth) -> None:
    rows, is_kept = CollatedRows(data), np.ones(len(data.train_rows), bool)
    is_kept[:7] = False
    found = []
    for seed in (5, 5, 6):
        loader = KeptRows(data, rows, is_kept, seed).train_dataloader()
        found.append([ids(loader), ids(loader)])
    assert found[0] == found[1]
    assert len({tuple(epoch) for of_seed in (found[0], found[2]) for epoch in of_seed}) == 4
    assert all(sorted(epoch) == list(range(7, len(rows))) for of_seed in found for epoch in of_seed)


def test_some_rows_must_be_kept(data: FtraceSynth) -> None:
    rows = CollatedRows(data)
    for is_kept in (np.zeros(len(rows), bool), np.ones(3, bool)):
        with pytest.raises(ValueError, match=f"expected some of {len(rows)} rows to be kept"):
            KeptRows(data, rows, is_kept)
