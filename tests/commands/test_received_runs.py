"""The folder of a run that somebody else has made runs no code of theirs, and leads nowhere out of it."""

from __future__ import annotations

import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import pytest
import yaml

import ftrace.data
import ftrace.models
from ftrace.cli import COMMANDS, main
from ftrace.data import FactData
from ftrace.models import FactLM
from ftrace.run_classes import own_classes, tables_of
from ftrace.run_folder import UntrustedError
from ftrace.runs import Run
from helpers.made_run import data_of, make_run, train, write_scores

EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from ftrace.data import FtraceSynth
from ftrace.models import FactLM as Own
class FactLM(Own): pass
class Data(FtraceSynth): pass
"""
COMMAND = {"class_path": "os.system", "init_args": {"command": "touch {mark}"}}
SECTIONS: dict[str, tuple[str, Any]] = {
    "a module of the folder": ("model", {"class_path": "evil.FactLM", "init_args": {"config": {"model_type": "gpt2"}}}),
    "data of the folder": ("data", {"class_path": "evil.Data"}),
    "a path alone": ("data", "evil.Data"),
    "a file": ("data", "other.yaml"),
    "a command": ("data", COMMAND),
    "a module of ours that imports it": ("model", {"class_path": "ftrace.cli.sys.modules"}),
    "nested": ("data", {"class_path": "ftrace.data.FtraceSynth", "init_args": {"synth": {"seed": [COMMAND]}}}),
    "arguments in a file": ("model", {"class_path": "ftrace.models.FactLM", "init_args": "other.yaml"}),
    "further arguments": (
        "model", {"class_path": "ftrace.models.FactLM", "init_args": {}, "dict_kwargs": {"config": COMMAND}},
    ),
}  # fmt: skip
BY_COMMAND: dict[str, list[str]] = {
    "ask": ["{run}", "who"],
    "attribute": ["--method=bm25", "--run={run}"],
    "causal-trace": ["--run={run}"],
    "counterfactual": ["online", "--run={run}"],
    "evaluate": ["{run}/online"],
    "index": ["--run={run}"],
    "learned-when": ["online", "--run={run}"],
    "tail-patch": ["online", "--run={run}"],
}
SHOWS = {"show": ["{run}", "--query=1"], "report": ["{run}", "--out={run}/out.html"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("received")
    data = data_of(folder / "data")
    train(make_run(folder / "run", folder / "data"), data, steps=1)
    write_scores(folder / "run" / "online", data, {"dot": 0.1})
    return folder / "run"


@pytest.fixture
def received(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run whose working directory has a module, as ``python -c`` and notebooks would find it there."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
    (theirs / "other.yaml").write_text(yaml.safe_dump(_marked(COMMAND, tmp_path / "mark")))
    (run / "working_directory.txt").write_text(f"{theirs}\n")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    yield run
    sys.modules.pop("evil", None)
    assert not (tmp_path / "mark").exists(), "their code has run"


def _marked(value: Any, mark: Path) -> Any:
    if isinstance(value, dict):
        return {name: _marked(item, mark) for name, item in value.items()}
    if isinstance(value, list):
        return [_marked(item, mark) for item in value]
    return value.replace("{mark}", str(mark)) if isinstance(value, str) else value


def _change(run: Path, section: str, value: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, section: _marked(value, run.parent / "mark")}))


@pytest.mark.parametrize("case", SECTIONS)
def test_only_classes_of_ftrace_are_followed(received: Path, case: str) -> None:
    section, value = SECTIONS[case]
    _change(received, section, value)
    run = Run(received)
    with pytest.raises(UntrustedError, match=rf"{section}: .*add --trust"):
        _ = run.data if section == "data" else run.untrained_model()


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": {"class_path": "evil.Strategy"}}, {"plugins": "evil.Plugin"}, {"plugins": ["evil.Plugin"]},
        {"accelerator": " evil.Accelerator"},
    ],
)  # fmt: skip
def test_a_trainer_is_made_of_settings_alone(received: Path, settings: dict[str, Any]) -> None:
    _change(received, "trainer", settings)
    with pytest.raises(UntrustedError, match=r"trainer: +evil\.\w+ in \w+"):
        Run(received).bare_trainer()


def test_a_trainer_of_settings_alone_is_made(received: Path) -> None:
    callbacks = [{"class_path": "evil.Callback"}]  # which are left out
    _change(received, "trainer", {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "callbacks": callbacks,
                                  "default_root_dir": "runs.of.mine", "gradient_clip_val": 1.5})  # fmt: skip
    assert Run(received).bare_trainer().max_epochs == 2


@pytest.mark.parametrize("command", BY_COMMAND)
@pytest.mark.parametrize("section", ["data", "model"])
def test_every_command_refuses_in_one_line(
    received: Path, command: str, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _change(received, "data", {"class_path": "evil.Data"})
    _change(received, "model", {"class_path": "evil.FactLM"})
    assert main([command, *[argument.replace("{run}", str(received)) for argument in BY_COMMAND[command]]]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "model: evil.FactLM, data: evil.Data" in said[-1]
    assert "--trust" in said[-1]


@pytest.mark.parametrize("command", SHOWS)
def test_what_needs_no_model_is_shown(received: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _change(received, "model", {"class_path": "evil.FactLM"})
    assert main([command, *[argument.replace("{run}", str(received)) for argument in SHOWS[command]]]) == 0
    if command == "show":
        assert "evil.FactLM" in capsys.readouterr().err


def test_every_command_that_takes_a_run_is_here() -> None:
    assert COMMANDS.keys() == BY_COMMAND.keys() | SHOWS.keys() | {"check", "search", "ledger", "synth", "study"}
    # search opens runs as ask does; the others follow no config, or one's own


def test_nothing_is_imported_from_the_folder_that_paths_start_from(received: Path) -> None:
    """Although "" stands in sys.path, and lazy imports of libraries happen while the data are made."""
    (received.parent / "theirs" / "pyarrow_hotfix.py").write_text("import evil")
    with pytest.raises(ImportError):
        _import_in_folder(received.parent / "theirs")
    _ = Run(received).data


def _import_in_folder(folder: Path) -> None:
    from ftrace.run_classes import in_folder

    with in_folder(folder):
        import evil  # type: ignore[import-not-found]  # noqa: F401


def test_a_trusted_run_is_followed_and_its_types_are_checked_first(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "mine.py").write_text(EVIL.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    section = yaml.safe_load((trained / "config.yaml").read_text())["model"]
    _change(tmp_path / "run", "model", {**section, "class_path": "mine.FactLM"})
    assert type(Run(tmp_path / "run", trust=True).model).__module__ == "mine"
    _change(tmp_path / "run", "model", _marked(COMMAND, tmp_path / "command"))
    with pytest.raises(ValueError, match=r"section model: "):
        _ = Run(tmp_path / "run", trust=True).model
    assert not (tmp_path / "command").exists()


def test_own_classes_are_those_of_ftrace() -> None:
    """The lists of classes that are followed name all that there are, although none is imported for them."""
    assert {"ftrace.models.FactLM", "ftrace.models.fact_lm.FactLM"} == own_classes("model")
    for section, base, package in (("model", FactLM, ftrace.models), ("data", FactData, ftrace.data)):
        for name in package.__all__:  # imports all
            getattr(package, name)
        kinds = [kind for kind in with_subclasses(base) if kind.__module__.startswith("ftrace.")]
        public = {f"{package.__name__}.{kind.__name__}" for kind in kinds if hasattr(package, kind.__name__)}
        assert own_classes(section) == {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds} | public


def test_tables_of_our_data_are_those_that_they_inherit() -> None:
    for path in own_classes("data") - {"ftrace.data.FactData", "ftrace.data.fact_data.FactData"}:
        tables, data = (locate(name) for name in (tables_of(path), path))
        assert tables in data.__mro__
        assert tables.__init__ is data.__init__  # the same options
    assert tables_of("ftrace.data.FactData") is None
    assert tables_of("theirs.FtraceSynth") is None


def with_subclasses(base: type) -> set[type]:
    return {base}.union(*map(with_subclasses, base.__subclasses__()))


class _Command:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_weights_are_tensors_alone(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(_Command(tmp_path / "mark"), protocol=2))
    with pytest.raises((ValueError, OSError)):
        FactLM(str(tmp_path))
    assert not (tmp_path / "mark").exists()


def test_arrays_hold_no_objects(received: Path) -> None:
    np.save(received / "online" / "dot.npy", np.array([_Command(received.parent / "mark")]), allow_pickle=True)
    assert main(["show", str(received)]) in (0, 2)
    assert main(["evaluate", str(received / "online"), "--queries=all"]) == 2


def test_what_is_kept_in_a_run_is_not_written_through_a_link_out_of_it(received: Path) -> None:
    target = received.parent / "mine.txt"
    target.write_text("mine")
    (received / "answers.json").symlink_to(target)
    with pytest.raises(ValueError, match=r"leads out of it"):
        Run(received).answers([1])
    assert target.read_text() == "mine"
