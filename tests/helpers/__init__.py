"""What several test files share: oracles, tiny models, made runs, and scripts for processes of their own.

A test file imports from here, never from another test file; a module here is named after what it gives.
"""

from __future__ import annotations

from pathlib import Path


def script(name: str) -> str:
    """Return the path of a module of this folder that a test runs as a script."""
    return str(Path(__file__).with_name(f"{name}.py"))
