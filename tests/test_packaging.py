"""What users install: it works beside a folder `callbacks/`, from inside a clone, and brings the recipes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path | None = None, code: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


@dataclass(frozen=True)
class Installed:
    """A clone, and an environment into which it was installed, not editable.

    Args:
        clone: The clone's folder.
        python: The environment's.
        site: Its site-packages, which hold ftrace and nothing else; torch and the others are lent by this environment.
    """

    clone: Path
    python: Path
    site: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    clone = folder / "clone"
    clone.mkdir()
    for name in ("ftrace", "callbacks", "configs", "pyproject.toml", "README.md", "LICENSE", "train.py"):
        run("cp", "-r", ROOT / name, clone / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "wheels", clone)
    (wheel,) = (folder / "wheels").glob("ftrace-*.whl")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel)
    lent = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    return Installed(clone, folder / "env" / "bin" / "python", site)


def test_every_package_is_listed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "ftrace").rglob("__init__.py")}
    assert set(packages) == folders | {"ftrace.callbacks", "ftrace.configs"}


def test_wheel_beside_a_folder_named_callbacks(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    check = (
        "import sys, callbacks, ftrace, ftrace.callbacks\n"
        "from ftrace.callbacks import OnlineTracIn, CheckpointSnapshots\n"
        "from ftrace.data.synth_vocabularies import read_entities, read_relations\n"
        "from ftrace.data.trex_sources import open_trex\n"
        "import ftrace.cli\n"
        "assert callbacks.MINE and len(read_relations()) >= 40 and len(read_entities()) >= 400\n"
        "assert next(open_trex('sample').rows('abstracts')).fields['facts']\n"
        "assert not any(type(finder).__name__ == 'CloneFinder' for finder in sys.meta_path)\n"
        "print(ftrace.callbacks.__file__)\n"
    )
    assert str(installed.site) in run(installed.python, "-c", check, cwd=tmp_path)
    assert (installed.site / "ftrace" / "py.typed").exists()
    assert not (installed.site / "callbacks").exists()
    assert not (installed.site / "configs").exists()


def test_wheel_brings_the_recipes_by_name(installed: Installed, tmp_path: Path) -> None:
    names = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    brought = installed.site / "ftrace" / "configs"
    assert {path.relative_to(brought) for path in brought.rglob("*") if path.is_file()} == names
    command = installed.site / "bin" / "ftrace"
    printed = run(installed.python, command, "fit", "--config", "synth_demo", "--print_config", cwd=tmp_path)
    assert "class_path: ftrace.callbacks.OnlineTracIn" in printed
    assert not list(tmp_path.iterdir())


def test_wheel_brings_the_explorer_and_the_licences_of_others(installed: Installed) -> None:
    for folder in ("app", "vendor"):
        source = ROOT / "ftrace" / "report" / "explorer" / folder
        brought = installed.site / "ftrace" / "report" / "explorer" / folder
        assert {file.name for file in brought.iterdir()} == {file.name for file in source.iterdir()}
    noted = {file.name for file in installed.site.glob("ftrace-*.dist-info/licenses/**/*") if file.is_file()}
    assert noted == {"LICENSE", "preact.LICENSE"}


def test_inside_a_clone_the_clone_is_imported_whole(installed: Installed) -> None:
    """The clone's `ftrace/` hides the installed one, and its callbacks come with it."""
    check = (
        "import train, ftrace, ftrace.callbacks.online_tracin as online\n"
        "print(ftrace.__file__, online.__file__, train.main.__code__.co_filename)\n"
    )
    files = [Path("ftrace", "__init__.py"), Path("callbacks", "online_tracin.py"), Path("ftrace", "commands", "fit.py")]
    assert run(installed.python, "-c", check, cwd=installed.clone).split() == [
        str(installed.clone / file) for file in files
    ]


def test_inside_a_clone_where_another_is_installed_editable(installed: Installed) -> None:
    """That one's finder, which this environment has, gives way."""
    check = "import importlib.util, ftrace; print(importlib.util.find_spec('ftrace.callbacks').origin)"
    found = run(sys.executable, "-c", check, cwd=installed.clone).strip()
    assert found == str(installed.clone / "callbacks" / "__init__.py")


def test_a_folder_ftrace_in_somebodys_project_leaves_their_callbacks_alone(
    installed: Installed, tmp_path: Path
) -> None:
    run("cp", "-r", ROOT / "ftrace", tmp_path / "ftrace")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").write_text("MINE = True\n")
    check = (
        "import importlib.util, ftrace, callbacks; print(callbacks.MINE, importlib.util.find_spec('ftrace.callbacks'))"
    )
    assert run(installed.python, "-c", check, cwd=tmp_path).split() == ["True", "None"]
