"""Which forms of an answer count as the same, as data sets know them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftrace.data import FtraceSynth, FtraceTrex, SynthSettings


@pytest.mark.parametrize("entities", ["numbered", "readable"])
def test_entities_have_all_their_surfaces(entities: str, tmp_path: Path) -> None:
    settings = SynthSettings(
        num_entities=24, num_relations=3, num_facts=8, num_test_utterances=2, num_facts_per_utterance=1,
        entities=entities,
    )  # fmt: skip
    data = FtraceSynth(settings, str(tmp_path))
    data.prepare_data()
    data.setup()
    forms = list(map(tuple, data.answer_forms()))
    assert len(forms) == 24
    assert {tuple(answers) for answers in data.query_rows["answers"]} <= set(forms)


def test_other_data_know_what_their_queries_accept(tmp_path: Path) -> None:
    data = FtraceTrex("sample", str(tmp_path))
    data.prepare_data()
    data.setup()
    assert list(data.answer_forms()) == list(data.query_rows["answers"])
