"""What users install: `ftrace.callbacks` must be importable where a folder `callbacks/` stands in the way."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_is_listed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "ftrace").rglob("__init__.py")}
    assert set(packages) == folders | {"ftrace.callbacks"}


def test_wheel_in_a_clean_environment_beside_a_folder_named_callbacks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ftrace", "callbacks", "pyproject.toml", "README.md", "LICENSE"):
        run("cp", "-r", ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheels", source)
    (wheel,) = (tmp_path / "wheels").glob("ftrace-*.whl")

    # Its own site-packages hold ftrace and nothing else; torch and the others are lent by this environment.
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel)
    lent = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in lent))

    project = tmp_path / "project"
    (project / "callbacks").mkdir(parents=True)
    (project / "callbacks" / "__init__.py").write_text("MINE = True\n")
    check = (
        "import callbacks, ftrace, ftrace.callbacks\n"
        "from ftrace.callbacks import OnlineTracIn, CheckpointSnapshots\n"
        "from ftrace.data.synth import read_relations\n"
        "from ftrace.data.trex_sources import open_trex\n"
        "import ftrace.cli\n"
        "assert callbacks.MINE and len(read_relations()) >= 40\n"
        "assert next(open_trex('sample').rows('abstracts')).fields['facts']\n"
        "print(ftrace.callbacks.__file__)\n"
    )
    assert str(site) in run(python, "-c", check, cwd=project)
    assert (site / "ftrace" / "py.typed").exists()
    assert not (site / "callbacks").exists()
