"""Install the browsers that the tests drive, where that is possible; ``make test`` runs it.

What is there already is used. Else root installs the system's packages, and everybody else what Playwright brings. What
can't be installed is said in a line; the tests that need it then say so, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright

from helpers.browsers import NAMES, find_browser, missing

_PACKAGES = {"chromium": "chromium", "firefox": "firefox-esr"}  # of Debian
_LIMIT_S = 900


def main() -> int:
    """Install what is missing; return 0 if all browsers are there, else 1."""
    if _missing() and os.getuid() == 0 and shutil.which("apt-get"):
        _install_packages(_missing())
    for name in _missing():
        _run(sys.executable, "-m", "playwright", "install", *(["--with-deps"] if os.getuid() == 0 else []), name)
    still_missing = _missing()
    for name in still_missing:
        print(f"browsers: {missing(name)}")
    return 1 if still_missing else 0


def _missing() -> list[str]:
    with sync_playwright() as playwright:
        return [name for name in NAMES if find_browser(name, playwright) is None]


def _install_packages(names: list[str]) -> None:
    quick = ("-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")
    _run("apt-get", *quick, "update")
    for name in names:
        _run("apt-get", *quick, "install", "--yes", "--no-install-recommends", _PACKAGES[name])


def _run(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": "20000"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_LIMIT_S)
        lines, code = (done.stderr.strip() or done.stdout.strip()).splitlines(), done.returncode
    except subprocess.TimeoutExpired:
        lines, code = [f"not finished after {_LIMIT_S} s"], 1
    if code:
        print(f"browsers: `{' '.join(command)}` failed: {lines[-1] if lines else f'exit code {code}'}")


if __name__ == "__main__":
    sys.exit(main())
