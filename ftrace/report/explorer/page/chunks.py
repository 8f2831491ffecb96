"""Chunks: the parts of a report that are loaded one by one.

A chunk is JSON in UTF-8, compressed as a raw deflate stream and written in base64, so that it can stand in a page or in
a script: a page that was opened by double-click can load nothing else. ``DecompressionStream("deflate-raw")`` reads it.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

HEAD = "head"
_NAME = re.compile(r"head|(query|example)-(0|[1-9][0-9]*)")


def encode_chunk(chunk: Mapping[str, Any]) -> str:
    """Write a chunk as text of base64.

    Args:
        chunk: What JSON can hold; numbers that are not finite have to be None.

    Raises:
        ValueError: If a number is not finite.

    Example:
        >>> decode_chunk(encode_chunk({"id": "17", "loss": None, "answer": "Bodø"}))
        {'id': '17', 'loss': None, 'answer': 'Bodø'}
    """
    text = json.dumps(chunk, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half of a surrogate pair, which UTF-8 can't hold, becomes the escape that JSON has for it.
    data = text.encode("utf-8", errors="backslashreplace")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(packer.compress(data) + packer.flush()).decode("ascii")


def decode_chunk(text: str) -> dict[str, Any]:
    """Read what :func:`encode_chunk` wrote."""
    chunk: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text, validate=True), -zlib.MAX_WBITS))
    return chunk


def is_chunk_name(name: str) -> bool:
    """Return whether a chunk may be called this: "head", "query-N" or "example-N"."""
    return _NAME.fullmatch(name) is not None


def island(name: str, encoded: str) -> str:
    """Return a chunk as a part of a page, which the browser keeps and doesn't run."""
    return f'<script type="application/octet-stream" id="chunk-{name}">{encoded}</script>\n'


def chunk_script(name: str, encoded: str) -> str:
    """Return a chunk as a script of its own, which hands it to the page."""
    return f'ftraceChunk("{name}","{encoded}");\n'


def encoded_in_script(script: str) -> str:
    """Return the text that :func:`chunk_script` put into a script."""
    return script.rsplit('"', 2)[1]
