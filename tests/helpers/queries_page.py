"""The recipes of docs/queries.md, taken from its examples as they stand there."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ftrace import online

PAGE = Path(__file__).parents[2] / "docs" / "queries.md"


def recipe(name: str, **constants: Any) -> Callable[[Any, Any], torch.Tensor]:
    """Return a function of the page.

    Args:
        constants: What its example has computed before, by name.
    """
    names = vars(online) | {"torch": torch} | constants
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        functions = [node for node in ast.parse(block).body if isinstance(node, ast.FunctionDef)]
        if any(function.name == name for function in functions):
            exec(compile(ast.Module(functions, []), str(PAGE), "exec"), names)
            return names[name]
    raise LookupError(f"docs/queries.md has no function {name!r}")
