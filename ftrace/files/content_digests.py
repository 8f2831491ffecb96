"""Digests of content that carries its own: of a file that isn't described by a manifest beside it."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash


def digest_of_parts(parts: Iterable[bytes | str]) -> str:
    """Compute the XXH3 digest (128 bits) of several parts, which no other parts have that make the same bytes.

    Args:
        parts: Bytes, and texts, whose UTF-8 counts.

    Example:
        >>> digest_of_parts(["ab", "c"]) == digest_of_parts(["a", b"bc"])
        False
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return str(digest.hexdigest())
