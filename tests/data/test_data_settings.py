"""The settings that all data modules have: one source for Python, configs and the command line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from ftrace.data import FactCorpus, FactData, FactDataSettings, FtraceSynth, FtraceTrex, SynthSettings

OTHER = {
    "data_dir": "elsewhere", "architecture": "decoder-only", "tokenizer": "gpt2", "split_hyphens": True,
    "batch_size": 3, "query_batch_size": 4, "num_workers": 5, "num_queries": 6, "query_seed": 7,
    "max_length": 8,
}  # fmt: skip


@pytest.fixture
def arguments(tmp_path: Path) -> dict[type[FactData], dict[str, Any]]:
    """What each data module needs besides."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"inputs": "a", "targets": "b"}\n')
    return {
        FtraceSynth: {"synth": SynthSettings(num_facts=9, num_test_utterances=2)},
        FtraceTrex: {"source": "sample"},
        FactCorpus: {"train": str(file), "queries": str(file)},
    }


@pytest.mark.parametrize("kind", [FtraceSynth, FtraceTrex, FactCorpus])
def test_settings_by_place_by_name_and_as_options(
    kind: type[FactData], arguments: dict[type[FactData], dict[str, Any]]
) -> None:
    asked = FactDataSettings(**OTHER)
    assert set(OTHER) == set(asdict(asked))
    assert not asdict(asked).items() & asdict(FactDataSettings()).items()

    by_place = kind(*arguments[kind].values(), *OTHER.values())
    by_name = kind(**arguments[kind], **OTHER)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    given = {name: value for name, value in arguments[kind].items() if name != "synth"}
    options = [f"--data.init_args.{name}={value}" for name, value in {**given, **OTHER}.items()]
    parsed = parser.parse_args([f"--data=ftrace.data.{kind.__name__}", *options])
    by_options = parser.instantiate(parsed)["data"]
    assert by_place.settings == by_name.settings == by_options.settings == asked
    assert by_place.data_path == by_name.data_path
    assert by_place.data_path.parent == Path("elsewhere").absolute()

    plain = parser.parse_args([f"--data=ftrace.data.{kind.__name__}", *options[: len(given)]])
    shown = plain["data"]["init_args"].as_dict()
    assert {name: shown[name] for name in OTHER} == asdict(FactDataSettings())


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(TypeError, match="batch_sise"):
        FtraceSynth(batch_sise=3)
