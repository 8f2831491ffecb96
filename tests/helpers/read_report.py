"""A written report, read back: its chunks, and what stands around them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ftrace.report.explorer.page.chunks import decode_chunk

_ISLAND = re.compile(
    r'<script type="application/octet-stream" id="chunk-([a-z]+(?:-\d+)?)">([A-Za-z0-9+/=]*)</script>\n'
)
_SCRIPT = re.compile(r'ftraceChunk\("([a-z]+(?:-\d+)?)","([A-Za-z0-9+/=]*)"\);\n')


def chunks_of(page: Path) -> dict[str, dict[str, Any]]:
    """The chunks of a report by name, of its one file or of the ``index.html`` of its folder."""
    if page.name == "index.html":
        scripts = [
            _SCRIPT.fullmatch(file.read_text(encoding="ascii")) for file in (page.parent / "chunks").glob("*.js")
        ]
        assert all(scripts), "a script of a chunk calls one function with two texts"
        encoded = [script.groups() for script in scripts if script]
    else:
        encoded = _ISLAND.findall(page.read_text(encoding="utf-8"))
    return {name: decode_chunk(text) for name, text in encoded}


def without_chunks(page: Path) -> str:
    """What stands in a report's page outside of its chunks."""
    return _ISLAND.sub("", page.read_text(encoding="utf-8"))


def queries_of(page: Path) -> dict[str, dict[str, Any]]:
    """The chunks of queries by the query's id."""
    return {chunk["id"]: chunk for name, chunk in chunks_of(page).items() if name.startswith("query-")}
