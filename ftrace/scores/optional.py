"""Packages that are not installed with ftrace, imported where they are needed."""

from __future__ import annotations

from typing import Any


def import_xarray() -> Any:
    """Import xarray.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError('expected xarray, found none installed. Run: pip install "ftrace[xarray]"') from error
    return xarray
