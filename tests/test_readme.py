"""What README.md and the pages in docs/ show is run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from helpers import warm_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "docs" / name
    for name in (
        "engine.md",
        "own_training.md",
        "plain_loop.md",
        "adapters.md",
        "trainer.md",
        "sft.md",
        "dpo.md",
        "grpo.md",
        "fabric.md",
        "queries.md",
        "packed.md",
        "stores.md",
        "evaluation.md",
        "trackstar.md",
        "causal.md",
        "report.md",
    )
]
BLOCKS = re.findall(r"```python\n(.*?)```", README + "".join(page.read_text() for page in PAGES), re.S)


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_python_examples_run(index: int, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(BLOCKS[index])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = warm_python.run("example.py", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_there_is_an_example() -> None:
    assert any("OnlineTracIn" in block for block in BLOCKS)


def test_the_two_commands_are_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in ("demo", "test"):
        assert f"make {command}" in README
        assert re.search(rf"^{command}:", makefile, re.M)


def test_every_dependency_is_named_with_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    for requirement in [*project["dependencies"], *extras]:
        name = re.split(r"[\[<>=!]", requirement)[0]
        assert re.search(rf"`{re.escape(name)}`", README), name


def test_what_pages_link_to_is_there() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" not in target:
                assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"
