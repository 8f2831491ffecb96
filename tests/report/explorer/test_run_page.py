"""The page of a run: its numbers against the files, and commands that test its claims, which the parser accepts."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ftrace.cli import make_parser
from ftrace.commands.sources import open_sources
from ftrace.report.explorer.format import RunPage
from ftrace.report.explorer.run_page.claims import shown_path
from ftrace.report.explorer.run_page.manifest_facts import manifest_facts
from ftrace.report.explorer.run_page.run_page import make_run_page
from ftrace.scores import Ledger, ScoreStore
from ftrace.views import StoreSource
from helpers import command_line, small_run, traced_run
from helpers.made_store import make_ledger, make_store

STORES = ["runs/version_10/online", "runs/version_10/bm25"]
COMMANDS = ["tail-patch", "evaluate", "counterfactual", "causal-trace", "ledger"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a real run, called ``runs/version_10``: trained, traced and evaluated."""
    folder = tmp_path_factory.mktemp("a folder # of ü")
    (folder / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = traced_run.make("encoder-decoder", Path("runs"))
        for name in ("plot_average", "plot_lines"):
            patch.setattr(f"ftrace.commands.causal_results.{name}", lambda *given: None)
        quick = ["--accelerator=cpu", "--noise.samples=2", "--window=1", "--pictures=0", "--effects_csv=false"]
        assert command_line.code("causal-trace", f"--run={run}", *quick, "--scores=online", "--join.pictures=0") == 0
        assert command_line.code("attribute", "--method=bm25", f"--run={run}", f"--output_dir={run / 'bm25'}") == 0
        assert command_line.code("evaluate", run / "bm25", "--queries=all") == 0
    yield folder
    shutil.rmtree(folder)


def page_of(*names: str, run: str | None = None) -> RunPage:
    opened = open_sources(names, run, None)
    return make_run_page(opened.sources, opened.run)


def commands_in(page: RunPage) -> dict[str, list[str]]:
    """By command: its arguments."""
    split = [shlex.split(claim["command"]) for claim in page["claims"]]
    assert all(words[0] == "ftrace" for words in split)
    return {words[1]: words[2:] for words in split}


def accept(page: RunPage) -> None:
    """Let the parser of each command read it."""
    for name, arguments in commands_in(page).items():
        make_parser(name).parse_args([name, *arguments])


def test_a_run_has_everything(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    page = page_of(*STORES)
    assert page["folder"] == "runs/version_10"
    assert page["evaluation"] is not None
    assert page["ledger"] is not None
    assert page["causal"] is not None
    assert [manifest["title"] for manifest in page["manifests"]] == ["online", "bm25"]
    assert list(commands_in(page)) == COMMANDS
    assert str(made) not in json.dumps(page)  # nothing of where it lies on this machine
    assert page == page_of(*STORES)
    json.dumps(page, allow_nan=False)


def test_evaluation_is_that_of_the_table(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    shown = page_of("runs")["evaluation"]
    table = json.loads((made / "runs" / "version_10" / "evaluation" / "table.json").read_text())
    assert shown is not None
    assert shown["metrics"] == ["MRR", "P@1", "P@10", "R@10", "R@n"]
    ours, published = shown["rows"][:1], shown["rows"][1:]
    assert [row["name"] for row in ours] == list(table["rows"]) == ["bm25"]
    for given, row in zip(table["published"], published, strict=True):
        assert row["name"] == f"{given['method']} (published)"
        means = [given["metrics"].get(metric) for metric in shown["metrics"]]
        assert row["cells"] == [{"mean": mean, "low": None, "high": None} for mean in means]
    for row in ours:
        for metric, cell in zip(shown["metrics"], row["cells"], strict=True):
            low, high = table["intervals"][row["name"]][metric]
            assert cell == {"mean": table["rows"][row["name"]][metric], "low": low, "high": high}
    assert shown["ceiling"] == [table["ceiling"][metric] for metric in shown["metrics"]]
    assert shown["title"].startswith("8 queries (all), ")
    assert "95% intervals" in shown["notes"][0]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"rows": 3}', '{"rows": {"a": {"MRR": "much"}}, "queries": "all", "num_queries": 1}']
)
def test_a_damaged_table_is_a_note(content: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "table.json").write_text(content)
    shown = make_run_page([], tmp_path)["evaluation"]
    assert shown is not None
    assert shown["rows"] == []
    assert shown["notes"][0].startswith("evaluation/table.json can't be read")


def test_an_older_table_lacks_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    table = {"queries": "all", "num_queries": 3, "rows": {"online dot": {"MRR": 0.5, "P@10": None}}}
    (tmp_path / "evaluation" / "table.json").write_text(json.dumps(table))
    shown = make_run_page([], tmp_path)["evaluation"]
    assert shown is not None
    assert (shown["title"], shown["metrics"], shown["ceiling"]) == ("3 queries (all)", ["MRR", "P@10"], [None, None])
    assert shown["rows"][0]["cells"] == [
        {"mean": 0.5, "low": None, "high": None}, {"mean": None, "low": None, "high": None},
    ]  # fmt: skip


def test_the_ledger_adds_up_to_that_of_the_store(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    shown = page_of("runs")["ledger"]
    ledger = ScoreStore.open("runs/version_10/online").ledger
    assert shown is not None
    assert ledger is not None
    assert shown["sentence"].lower() == f"{ledger.summary()}.".lower()
    assert shown["doubts"] == ledger.doubts()
    assert (shown["steps"][0], shown["steps"][-1]) == (ledger.steps[0], ledger.next_steps[-1])
    assert sum(value or 0 for value in shown["actual"]) == pytest.approx(ledger.actual.sum(0).mean(), rel=1e-3)
    for account in shown["accounts"]:
        total = np.nan_to_num(ledger[account["name"]]).sum(0).mean()
        assert sum(value or 0 for value in account["values"]) == pytest.approx(total, rel=1e-3)


def test_many_intervals_become_forty_stretches(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    columns = dict.fromkeys(("loss", "next_loss", "predicted", "predicted_left", "examples", "momentum", "decay",
                             "uncovered", "projection", "rounding"), np.zeros((300, 2)))  # fmt: skip
    columns |= {
        "loss": generator.random((300, 2)),
        "predicted": generator.random((300, 2)),
        "examples": np.ones((300, 2)),
    }
    steps = np.arange(0, 900, 3)
    store = make_store(tmp_path / "s", ledger=Ledger(steps, steps + 3, np.array([0, 17]), columns))
    shown = make_run_page([StoreSource(store)])["ledger"]
    assert shown is not None
    assert len(shown["actual"]) == 40
    assert len(shown["steps"]) == 41
    assert all(first < last for first, last in zip(shown["steps"], shown["steps"][1:], strict=False))
    (examples,) = shown["accounts"]  # the others booked nothing
    assert sum(examples["values"]) == 300  # type: ignore[arg-type]
    middles = steps + 1.5
    first = columns["loss"][middles < shown["steps"][1]].mean(1).sum()
    assert shown["actual"][0] == pytest.approx(first, rel=1e-3)


def test_a_stretch_without_an_interval_is_not_known(tmp_path: Path) -> None:
    columns = dict.fromkeys(("loss", "next_loss", "predicted", "predicted_left", "examples", "momentum", "decay",
                             "uncovered", "projection", "rounding"), np.ones((3, 2)))  # fmt: skip
    steps, ends = np.array([0, 1, 2]), np.array([1, 2, 90])
    store = make_store(tmp_path / "s", ledger=Ledger(steps, ends, np.array([0, 17]), columns))
    shown = make_run_page([StoreSource(store)])["ledger"]
    assert shown is not None
    assert shown["steps"] == [0, 30, 60, 90]
    assert shown["actual"] == [0.0, 0.0, None]


def test_a_damaged_ledger_is_a_sentence(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", ledger=make_ledger())
    (tmp_path / "s" / "ledger.parquet").write_bytes(b"PAR1 no ledger")
    shown = make_run_page([StoreSource(store)])["ledger"]
    assert shown is not None
    assert shown["sentence"].startswith("The ledger can't be read")
    assert str(tmp_path) not in shown["sentence"]
    assert make_run_page([StoreSource(make_store(tmp_path / "t"))])["ledger"] is None


def test_manifests_say_what_a_reader_needs(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    (manifest,) = page_of("runs")["manifests"]
    facts = dict(manifest["facts"])
    store = ScoreStore.open("runs/version_10/online")
    assert facts["method"] == "online TracIn"
    assert facts["kinds"] == "learning, update (float32)"
    assert facts["size"] == f"{len(store.example_ids)} examples, 8 queries"
    assert facts["training"] == "8 optimizer steps"
    assert facts["query gradients"].startswith("computed anew every 4 steps")
    assert facts["projection"] == "each weight's gradient becomes 8 x 8"
    assert facts["optimizer"].startswith("AdamW (betas 0.9, 0.999; ")
    assert facts["learning rate"].startswith("0.01")
    assert facts["loss of a query"] == "the module's own, example_losses(batch)"
    elements = sum(line["elements"] for line in store.manifest["coverage"])
    assert facts["coverage"] == f"all {elements:,} trained weights"
    assert facts["seed"] == "0"
    assert "torch" in facts["versions"]
    assert all(len(value) <= 200 for value in facts.values())


def test_unknown_entries_are_short_json_without_paths(tmp_path: Path) -> None:
    manifest: dict[str, Any] = {
        "method": "mine", "note_of_mine": "as it is", "index": "/home/me/secret/index",
        "nested": {"a": [1, {"b": "~/x/y"}]},
        "huge": list(range(1000)), "long": "x" * 999, "nothing": None, "on": True, "windows": "C:\\me\\data",
        "optimizers": "not a list", "coverage": [{"no": "status"}], "seconds": "soon",
    }  # fmt: skip
    facts = dict(manifest_facts(make_store(tmp_path / "s", manifest=manifest)))
    assert facts["method"] == "mine"
    assert facts["note of mine"] == "as it is"
    assert facts["index"] == "…/index"
    assert facts["nested"] == '{"a": [1, {"b": "…/y"}]}'
    assert facts["huge"] == "1,000 entries"
    assert facts["long"] == "x" * 199 + "…"
    assert "nothing" not in facts
    assert (facts["on"], facts["windows"], facts["optimizer"]) == ("yes", "…/data", "not a list")
    assert (facts["coverage"], facts["seconds"]) == ('[{"no": "status"}]', "soon")


def test_gaps_of_the_coverage_are_named(tmp_path: Path) -> None:
    lines = [
        {"parameter": "a", "elements": 30, "status": "covered"},
        {"parameter": "b", "elements": 10, "status": "off"},
    ]
    facts = dict(manifest_facts(make_store(tmp_path / "s", manifest={"coverage": lines})))
    assert facts["coverage"] == "75.0% of 40 weights; not covered: b"


def test_each_command_is_parsed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    page = page_of(*STORES)
    accept(page)
    assert commands_in(page) == {
        "tail-patch": [  # this run's last snapshot has no states of an optimizer
            "online", "bm25", "--run=runs/version_10", "--optimizer=sgd", "--learning_rate=0.01", "--kinds", "learning",
        ],
        "evaluate": ["bm25", "--run=runs/version_10"],  # online has not seen all examples
        "counterfactual": ["bm25", "--run=runs/version_10", "--leave_out_k=10"],
        "causal-trace": [
            "--run=runs/version_10", "--window=1", "--noise.kind=uniform",
            "--output_dir=runs/version_10/causal-uniform", "--scores=online:learning",
        ],
        "ledger": ["runs/version_10/online"],
    }  # fmt: skip
    other = page_of("online:update", run="runs")
    accept(other)
    assert commands_in(other)["tail-patch"] == [
        "online", "--run=runs/version_10", "--optimizer=sgd", "--learning_rate=0.01", "--kinds", "update",
    ]  # fmt: skip
    assert commands_in(other)["causal-trace"][-1] == "--scores=online:update"


@pytest.mark.parametrize("name", ["-x", "null", "a b'c", "[1, 2]", "{a: b}", "$(touch x)", "run:dot"])
def test_awkward_names_are_quoted_and_parsed(
    name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "runs" / "version_10", tmp_path / name)
    (tmp_path / name / "online").rename(tmp_path / name / name)
    monkeypatch.chdir(tmp_path)
    page = page_of(f"./{name}/{name}")
    accept(page)
    assert commands_in(page).keys() == {"tail-patch", "causal-trace", "ledger"}
    for command, arguments in commands_in(page).items():
        options = vars(make_parser(command).parse_args([command, *arguments])[command])
        if command == "ledger":
            assert ScoreStore.open(options["store"]).path.samefile(tmp_path / name / name)
            continue
        run = Path(options["run"])
        assert run.samefile(tmp_path / name)
        stores = options.get("stores") or [options["scores"].rpartition(":")[0]]
        assert [(run / store).resolve() for store in stores] == [(tmp_path / name / name).resolve()]


def test_tail_patch_runs_as_it_is_copied(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the optimizer's states of a snapshot, and on a snapshot without."""
    other = small_run.make("encoder-decoder", tmp_path / "made", optimizer="sgd")
    run = small_run.write_run_folder(other, tmp_path / "run")
    scores = np.random.default_rng(0).normal(size=(2, len(other.data.train_rows), 4))
    ScoreStore.write(run / "online", np.arange(scores.shape[1]), np.arange(4), {"dot": scores[0], "cosine": scores[1]})
    (run / "learned_queries.json").write_text('{"paper": {"query_ids": []}}')
    for folder, name, options in ((made, "runs", 2), (tmp_path, "run", 0)):
        monkeypatch.chdir(folder)
        arguments = commands_in(page_of(name))["tail-patch"]
        assert sum("--optimizer" in argument or "--learning_rate" in argument for argument in arguments) == options
        assert command_line.code("tail-patch", *arguments) == 0
        assert "Tail-patch of the top 10" in capsys.readouterr().out
    table = json.loads(Path("run/tail-patch/table.json").read_text())
    assert list(table["rows"])[:1] == ["online dot"]
    assert table["num_queries"] == 4


def test_where_nothing_was_learned_all_queries_are_taken(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "runs" / "version_10", tmp_path / "run")
    (tmp_path / "run" / "learned_queries.json").write_text('{"paper": {"query_ids": []}}')
    monkeypatch.chdir(tmp_path)
    page = page_of("run/online", "run/bm25")
    accept(page)
    commands = commands_in(page)
    for name in ("tail-patch", "evaluate", "counterfactual"):
        assert "--queries=all" in commands[name]
    assert "--only_correct=false" in commands["causal-trace"]


def test_only_commands_that_can_work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "alone", ledger=make_ledger())
    assert list(commands_in(page_of("alone"))) == ["ledger"]
    make_store(tmp_path / "bare")
    assert page_of("bare")["claims"] == []
    run = shutil.copytree(made / "runs" / "version_10", tmp_path / "run")
    shutil.rmtree(run / "snapshots")
    assert list(commands_in(page_of("run"))) == ["ledger"]
    for config in ("", "[1]", "model: {class_path: mine.Line}\ndata: {class_path: mine.Points}", "model: !!python/x 1"):
        other = shutil.copytree(made / "runs" / "version_10", tmp_path / "other")
        (other / "config.yaml").write_text(config)
        assert list(commands_in(page_of("other"))) == ["ledger"]
        shutil.rmtree(other)


def test_what_was_not_traced_is_traced_as_the_demo_does(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(made / "runs" / "version_10", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    traced = commands_in(page_of("run"))["causal-trace"]
    assert traced == [
        "--run=run", "--window=1", "--noise.kind=uniform", "--output_dir=run/causal-uniform",
        "--scores=online:learning",
    ]  # fmt: skip
    shutil.rmtree(run / "causal")
    page = page_of("run")
    assert page["causal"] is None
    assert commands_in(page)["causal-trace"] == ["--run=run", "--window=1", "--scores=online:learning"]


def result_line(name: str, correct: list[bool] | None) -> str:
    count = 12 if correct is None else len(correct)
    fields: dict[str, Any] = {
        "example_id": name, "query_set": "s", "inputs_plaintext": f"{name} is in", "targets_plaintext": "B",
        "proponents": [f"text {place}" for place in range(count)], "proponent_ids": list(range(count)),
        "proponent_scores": list(range(count, 0, -1)), "fact_id": f"fact {name}",
    }  # fmt: skip
    return json.dumps(fields | ({} if correct is None else {"proponent_correct": correct}))


def test_results_with_labels_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = [[False] * 3 + [True] * 4 + [False] * 5, [True] + [False] * 11, [False] * 12]
    lines = [result_line(f"q{place}", correct) for place, correct in enumerate(labels)]
    Path("found.jsonl").write_text("\n".join(lines))
    Path("plain.jsonl").write_text("\n".join(result_line(f"q{place}", None) for place in range(3)))
    opened = open_sources(["found.jsonl", "plain.jsonl"], None, None)
    page = make_run_page(opened.sources, None, {"found": Path("found.jsonl"), "plain": Path("plain.jsonl")})
    shown = page["evaluation"]
    assert shown is not None
    assert shown["metrics"] == ["MRR", "recall@10", "P@1", "P@10"]
    (row,) = shown["rows"]
    assert [cell["mean"] for cell in row["cells"]] == pytest.approx([(1 / 4 + 1) / 3, 2 / 3, 1 / 3, 0.5 / 3])
    assert "plain: no labels say which examples state a fact" in shown["notes"]
    assert (page["folder"], page["ledger"], page["causal"], page["manifests"]) == (None, None, None, [])
    accept(page)
    assert commands_in(page) == {"evaluate": ["found.jsonl"]}
    nothing = make_run_page(opened.sources[1:], None, {"plain": Path("plain.jsonl")})
    assert (nothing["evaluation"], nothing["claims"]) == (None, [])


def test_results_of_other_queries_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.jsonl").write_text(result_line(name, [True]))
    opened = open_sources(["a.jsonl", "b.jsonl"], None, None)
    shown = make_run_page(opened.sources, None, opened.results)["evaluation"]
    assert shown is not None
    assert shown["rows"] == []
    assert "expected queries with labels that all files have" in shown["notes"][0]


def test_paths_are_relative_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert shown_path(tmp_path / "here" / "runs") == "runs"
    assert shown_path(Path("../there")) == "../there"
    assert shown_path(tmp_path / "there") == str(tmp_path / "there")
    assert shown_path(tmp_path / "here") == "."
