"""Imports between the parts run one way, as docs/design.md draws them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Import nothing of ours, so that every part may import them.
FOR_ALL = (
    "late_names", "renamed", "files", "arguments", "launched_processes", "progress", "shown_text", "shown_numbers",
)  # fmt: skip
MAY_IMPORT = {
    **{module: set() for module in FOR_ALL},
    "gradients": set(),
    "scores": set(),
    "index": {"gradients", "scores"},
    "online": {"gradients", "scores", "index"},
    "callbacks": {"gradients", "scores", "index", "online"},
    "hf": {"gradients", "scores", "index", "online"},
    "data": set(),
    "models": {"data"},
    "attribution": {"console", "gradients", "scores", "index", "data", "models"},
    "evaluation": {"console", "scores", "data", "models", "gradients"},
    "views": {"console", "scores"},
    "causal": {"data", "models", "evaluation"},
    "report": {"console", "scores", "views", "evaluation", "causal"},
    "console": set(),
    "run_folder": {"scores"},
    "run_classes": {"data", "models", "run_folder"},
    "runs": {"index", "data", "models", "evaluation", "run_classes", "run_folder"},
    "retraining": {"data", "models", "evaluation", "runs"},
    "commands": {
        "console",
        "gradients",
        "scores",
        "index",
        "data",
        "models",
        "attribution",
        "evaluation",
        "views",
        "report",
        "causal",
        "run_folder",
        "runs",
        "retraining",
        "named_configs",
    },
    "studies": {
        "console",
        "gradients",
        "attribution",
        "evaluation",
        "report",
        "runs",
        "scores",
        "commands",
        "named_configs",
    },
    "source_tree": set(),
    "__main__": {"cli"},
    "named_configs": {"source_tree"},
    "cli": {"console", "named_configs", "commands"},  # and by name, when they are called, the modules of commands
}
TRAINS = ROOT / "ftrace" / "commands" / "training.py"  # nothing else in ftrace/ imports the callbacks
WITHOUT_LIGHTNING = {"gradients", "scores", "index", "online", "hf"}


def sources(part: str) -> list[Path]:
    folder = ROOT / "callbacks" if part == "callbacks" else ROOT / "ftrace" / part
    return sorted(folder.glob("**/*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_part_has_a_rule() -> None:
    parts = {path.name for path in (ROOT / "ftrace").iterdir() if (path / "__init__.py").exists()}
    modules = {path.stem for path in (ROOT / "ftrace").glob("*.py")} - {"__init__"}
    assert parts | modules | {"callbacks"} == MAY_IMPORT.keys()


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_part_imports_only_what_it_may(part: str) -> None:
    for file in sources(part):
        ours = {name.split(".")[1] for name in imported(file) if name.startswith("ftrace.")}
        fit = {"callbacks"} if file == TRAINS else set()
        forbidden = ours - MAY_IMPORT[part] - set(FOR_ALL) - {part} - fit
        assert not forbidden, f"{file.relative_to(ROOT)} imports {sorted(forbidden)}"


def name_of(file: Path) -> str:
    """A module's full name, of its file."""
    inside = file.relative_to(ROOT).with_suffix("").parts
    return ".".join([*(["ftrace"] if inside[0] == "callbacks" else []), *inside]).removesuffix(".__init__")


def circles(imports: Mapping[str, Collection[str]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or by way of others.

    Args:
        imports: By module: full names of what it imports, each a module or something in one.
    """

    def module_of(name: str) -> str:
        while name and name not in imports:
            name = name.rpartition(".")[0]
        return name

    reached = {module: {module_of(name) for name in names} - {"", module} for module, names in imports.items()}
    for middle in reached:
        for module in reached:
            if middle in reached[module]:
                reached[module] |= reached[middle]
    found: list[set[str]] = []
    for module in reached:
        circle = {other for other in reached[module] if module in reached[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_circles_are_found() -> None:
    assert not circles({"a": ["b.x", "c"], "b": ["c.y", "torch"], "c": []})
    assert circles({"a": ["b.x"], "b": ["c.y"], "c": ["a"], "d": ["a"]}) == [{"a", "b", "c"}]
    assert circles({"a": ["a.b.x"], "a.b": ["a.Public"], "a.c": ["a.b.y"]}) == [{"a", "a.b"}]


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_modules_of_a_part_import_each_other_one_way(part: str) -> None:
    """Imports for types alone count, too."""
    assert not circles({name_of(file): imported(file) for file in sources(part)})


def test_experiments_of_the_evaluation_know_nothing_of_each_other() -> None:
    folder = ROOT / "ftrace" / "evaluation"
    experiments = {path.name for path in folder.iterdir() if (path / "__init__.py").exists()}
    for file in set(sources("evaluation")) - {folder / "__init__.py"}:
        names = {name.split(".")[2] for name in imported(file) if name.startswith("ftrace.evaluation.")}
        assert not names & experiments - {file.relative_to(folder).parts[0]}, file


@pytest.mark.parametrize("part", sorted(WITHOUT_LIGHTNING))
def test_part_knows_nothing_of_lightning(part: str) -> None:
    for file in sources(part):
        foreign = {"lightning"} if part == "hf" else {"lightning", "transformers"}
        assert not {name for name in imported(file) if name.split(".")[0] in foreign}, file


def test_gradients_needs_torch_only() -> None:
    allowed = {"torch", "ftrace"} | sys.stdlib_module_names
    for file in sources("gradients"):
        assert {name.split(".")[0] for name in imported(file)} <= allowed, file


def test_test_files_share_by_way_of_helpers_only() -> None:
    tests = ROOT / "tests"
    outside = [file for file in sorted(tests.glob("**/*.py")) if tests / "helpers" not in file.parents]
    strays = [str(file.relative_to(ROOT)) for file in outside if not file.name.startswith(("test_", "conftest"))]
    assert not strays, f"{strays}: move what tests share to tests/helpers"
    modules = {file.stem for file in outside}
    for file in tests.glob("**/*.py"):
        shared = {name.split(".")[0] for name in imported(file)} & modules
        # A script needs the settings of conftest, which pytest doesn't load for it.
        assert shared <= {"conftest"}, f"{file.relative_to(ROOT)} imports from {sorted(shared)}: use tests/helpers"


@pytest.mark.parametrize("part", FOR_ALL)
def test_what_all_parts_import_needs_little(part: str) -> None:
    small = {"ftrace", "msgspec", "xxhash", "filelock"} | ({"rich"} if part == "progress" else set())
    for file in sources(part):
        assert {name.split(".")[0] for name in imported(file)} <= sys.stdlib_module_names | small, file
