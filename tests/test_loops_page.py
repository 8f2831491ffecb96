"""docs/loops.md: each test that it names for what is exact in a loop is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "loops.md").read_text())


def test_each_test_is_there() -> None:
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(NAMED) > 30
    missing = [(file, test) for file, test in NAMED if f"def {test}(" not in files[file].read_text()]
    assert not missing
