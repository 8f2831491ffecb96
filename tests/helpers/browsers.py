"""Browsers that tests drive: those that are there, of the system or of Playwright's own download.

``make test`` has them installed where it may (``helpers/set_up_browsers.py``). Where one is missing all the same, its
tests are skipped with a line that says so; with ``CI=true`` in the environment they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Playwright, sync_playwright

# By browser: what it is called on systems' search paths, and the Debian package that brings it.
COMMANDS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "firefox": ("firefox-esr", "firefox"),
}
NAMES = tuple(COMMANDS)
_NO_TRAFFIC = ("--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync")
_AS_THE_SYSTEM_HAS_IT = {"color_scheme": "null", "reduced_motion": "null", "forced_colors": "null", "contrast": "null"}


def find_browser(name: str, playwright: Playwright) -> tuple[str, bool] | None:
    """Return the path of a browser that starts, and whether it is the system's; None if there is none.

    Args:
        name: One of :data:`NAMES`.
        playwright: Knows where its own browsers are.
    """
    for command in COMMANDS[name]:
        path = shutil.which(command)
        if path is not None and _starts(path):  # on Ubuntu, some are scripts that ask for a snap
            return path, True
    downloaded = getattr(playwright, name).executable_path
    return (downloaded, False) if Path(downloaded).exists() and _starts(downloaded) else None


def missing(name: str) -> str:
    """Say in a line that a browser is missing, and what to do."""
    return (
        f"found no {name} that starts: install it ({' or '.join(COMMANDS[name][:2])}), or run "
        f"`.venv/bin/python -m playwright install {name}`"
    )


@contextmanager
def launched(name: str) -> Iterator[Browser]:
    """Start a browser without a window, and close it at the end; skip the test if there is none, or fail in CI."""
    with sync_playwright() as playwright:
        found = find_browser(name, playwright)
        if found is None:
            (pytest.fail if os.environ.get("CI", "").lower() in ("true", "1") else pytest.skip)(missing(name))
        path, is_systems = found
        if name == "chromium":
            arguments = [*_NO_TRAFFIC, *(["--no-sandbox"] if os.getuid() == 0 else [])]
            browser = playwright.chromium.launch(executable_path=path, args=arguments)
        elif is_systems:  # Playwright's own Firefox speaks another protocol than those of systems
            browser = playwright.firefox.launch(executable_path=path, channel="moz-firefox")
        else:
            browser = playwright.firefox.launch()
        try:
            yield browser
        finally:
            browser.close()


def new_context(browser: Browser, **options: object) -> BrowserContext:
    """Open a context, which shares nothing with others; a system's Firefox can't be told to look otherwise."""
    return browser.new_context(**{**_AS_THE_SYSTEM_HAS_IT, **options})  # type: ignore[arg-type]


def _starts(path: str) -> bool:
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
