"""`ftrace attribute`: names, class paths, pools, learned queries, and bad input."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from ftrace.attribution import known_methods
from ftrace.commands.method_tasks import run_method
from ftrace.commands.options import number_of_bytes
from ftrace.evaluation import LearnedQueries
from ftrace.runs import Run
from ftrace.scores import ScoreStore
from helpers import small_run
from helpers.command_line import code
from helpers.small_run import SmallRun

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run.make("decoder-only", tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(run: SmallRun, tmp_path: Path) -> Path:
    return small_run.write_run_folder(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bm25", ("bm25",)),
        ("random-target", ("random-target",)),
        ("tracin", ("dot", "cosine")),
        ("embed", ("decoder.0", "decoder.1", "decoder.2")),
    ],
)
def test_short_names(name: str, kinds: tuple[str, ...], run: SmallRun, folder: Path, tmp_path: Path) -> None:
    assert code("attribute", "--method", name, f"--run={folder}", "--accelerator=cpu") == 0
    store = ScoreStore.open(folder / name)
    assert store.kinds == kinds
    assert store.example_ids.tolist() == list(range(len(run.data.train_rows)))
    facts = store.manifest
    assert (facts["method"], facts["candidates"], facts["queries"]) == (name, "all", "all")
    assert facts["seconds"] > 0
    assert facts["peak_memory_bytes"] > 2**20
    again = run_method(name, Run(folder), tmp_path / "again")
    for kind in kinds:
        np.testing.assert_array_equal(again.matrix(kind), store.matrix(kind))


def test_members_by_name_after_their_methods(folder: Path) -> None:
    assert code("attribute", "--method=tracin", f"--run={folder}", "--accelerator=cpu") == 0
    assert code("attribute", "--method=bm25", f"--run={folder}", "--method.tokens=words") == 0
    members = "--method.members=[tracin:cosine, bm25:bm25]"
    assert code("attribute", "--method=ensemble", members, "--method.standardize=true", f"--run={folder}") == 0
    store = ScoreStore.open(folder / "ensemble")
    assert abs(store.matrix("mean").mean()) < 1e-6
    assert store.manifest["members"][1]["options"]["tokens"] == "words"


def test_pool_and_learned_queries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = SimpleNamespace(example_ids=np.array([9, 2, 30, 2]))
    asked = []
    monkeypatch.setattr(Run, "candidate_pools", lambda self, query_ids: asked.append(query_ids) or pools, raising=False)
    monkeypatch.setattr(Run, "learned", lambda self, rule=None: LearnedQueries("last", [3, 1], 4, 2, 0, []))
    chosen = [f"--run={folder}", "--candidates=pool", "--queries=learned", "--accelerator=cpu"]
    for name in ("bm25", "random-target", "embed", "tracin"):
        assert code("attribute", f"--method={name}", *chosen) == 0
        store = ScoreStore.open(folder / name)
        assert store.example_ids.tolist() == [2, 9, 30]
        assert store.query_ids.tolist() == [3, 1]
        assert store.manifest["candidates"] == "pool"
        whole = run_method(name, Run(folder), folder / "whole")
        for kind in store.kinds:
            own = whole.matrix(kind)[[2, 9, 30]][:, [3, 1]]
            np.testing.assert_allclose(store.matrix(kind), own, rtol=1e-3, atol=1e-6)
    assert asked == [[3, 1]] * 4
    assert code("attribute", "--method=bm25", f"--run={folder}", "--candidates=pool") == 0
    assert list(asked[-1]) == [0, 1, 2, 3]


def test_the_example_of_contributing_is_a_method(
    folder: Path, run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    (example,) = (block for block in blocks if "AttributionMethod" in block)
    (tmp_path / "my_package.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["attribute", "--method=my_package.SharedWords", f"--run={folder}", "--method.longer_than=3"]
    assert code(*command) == 0
    store = ScoreStore.open(folder / "shared-words")
    assert store.manifest["options"] == {"longer_than": 3}
    rows, queries = run.data.train_rows, run.data.query_rows
    for example_id, column in ((0, 0), (17, 3)):
        texts = rows[example_id]["inputs_pretokenized"], queries[column]["inputs_pretokenized"]
        own, query = ({word for word in text.split(" ") if len(word) > 3} for text in texts)
        assert store.matrix("shared")[example_id, column] == len(own & query)
    capsys.readouterr()
    assert code("attribute", "--method.help=my_package.SharedWords") == 0
    assert "--method.longer_than" in capsys.readouterr().out
    sys.modules.pop("my_package")


@pytest.mark.parametrize("name", sorted(known_methods().keys() - {"shared-words", "counts-batches"}))
def test_help_says_what_each_option_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code("attribute", "--help") == 0
    assert f"{name}:" in " ".join(capsys.readouterr().out.split())
    assert code("attribute", "--method.help", name) == 0
    text = " ".join(capsys.readouterr().out.partition("Help for")[2].split())
    for option in known_methods()[name].__init__.__annotations__.keys() - {"return"}:
        described = text.partition(f" --method.{option} ")[2].partition("type:")[0]
        assert len(described.split()) > 4, described


def test_a_config_with_any_method(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--method=bm25", "--method.text=masked", f"--run={folder}"]
    assert code("attribute", *chosen, "--print_config") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["method"]["init_args"]["text"] == "masked"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(printed))
    assert code("attribute", f"--config={tmp_path / 'config.yaml'}", "--method.tokens=words") == 0
    assert ScoreStore.open(folder / "bm25").manifest["options"]["text"] == "masked"
    assert ScoreStore.open(folder / "bm25").manifest["options"]["tokens"] == "words"
    chosen = {"method": {"class_path": "RandomTarget", "init_args": {"seed": 5}}, "run": str(folder)}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(chosen))
    assert code("attribute", f"--config={tmp_path / 'short.yaml'}") == 0
    assert ScoreStore.open(folder / "random-target").manifest["options"] == {"seed": 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=tracni"], "found 'tracni'. Did you mean 'tracin'?"),
        (["--method=my_package.Missing"], "my_package"),
        (["--method=ftrace.data.FtraceSynth"], "method"),
        (["--method=tracin", "--method.kinds=[dots]"], "kinds"),
        (["--method=bm25", "--method.text=all"], "text"),
        (["--method=bm25", "--method.b=2"], "b: expected 0 to 1, found 2.0"),
        (["--method=tracin", "--method.parameters=[model.transformer.hh.*]"], "Did you mean 'model.transformer.h"),
        (["--method=embed", "--method.layers=[encoder.1]"], "layers: no 'encoder.1'. Did you mean 'decoder.1'"),
        (["--method=embed", "--method.snapshot=3"], "expected steps of [1, 2, 4], found [3]"),
        (["--method=dense"], "model"),
        (["--method=bm25", "--memory_budget=2 apples"], "expected a number of bytes such as 500MiB or 2GiB"),
        (
            ["--method=bm25", "--queries=learned"],
            "at least one query, found none (learned, of 4). Train",
        ),
        (["--method=bm25", "--output_dir={}"], "won't write scores to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Run, "learned", lambda self, rule=None: LearnedQueries("last", [], 4, 0, 0, []))
    assert code("attribute", *[one.replace("{}", str(folder)) for one in arguments], f"--run={folder}") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "snapshots"}


def test_a_run_without_snapshots(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "snapshots")
    assert code("attribute", "--method=bm25", f"--run={folder}") == 0
    assert code("attribute", "--method=embed", f"--run={folder}") == 2
    assert "the run has no snapshots" in capsys.readouterr().err


def test_bytes() -> None:
    for given, expected in (("7", 7), ("1KiB", 1024), ("2 MB", 2 * 10**6), ("0.5GiB", 2**29), (8, 8)):
        assert number_of_bytes("shard_bytes", given) == expected
    with pytest.raises(ValueError, match=r"shard_bytes: expected .* found '2gib'"):
        number_of_bytes("shard_bytes", "2gib")
