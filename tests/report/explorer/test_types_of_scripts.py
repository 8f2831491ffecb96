"""The explorer's scripts are typed: TypeScript finds nothing wrong in their JSDoc and what they do."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import ftrace.report.explorer

EXPLORER = Path(ftrace.report.explorer.__path__[0])
TYPESCRIPT = "5.9.3"
OPTIONS = {
    "strict": True,
    "noUncheckedIndexedAccess": True,
    "noFallthroughCasesInSwitch": True,
    "allowJs": True,
    "checkJs": True,
    "noEmit": True,
    "target": "ES2024",
    "lib": ["ES2024", "DOM", "DOM.Iterable"],
    "module": "esnext",
    "moduleResolution": "bundler",
    "types": [],
}


@pytest.fixture(scope="module")
def packages(request: pytest.FixtureRequest) -> Path:
    """The folder into which npm put TypeScript and the types of the libraries; it is kept between runs."""
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir("npm"))
    vendored = json.loads((EXPLORER / "vendor" / "vendored.json").read_text())
    wanted = {"typescript": TYPESCRIPT, **{project["name"].lower(): project["version"] for project in vendored}}
    manifest = json.dumps({"private": True, "dependencies": wanted})
    if (folder / "installed").exists() and (folder / "installed").read_text() == manifest:
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("found no npm, which brings TypeScript: install Node.js")
    (folder / "package.json").write_text(manifest)
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[0]
        pytest.skip(f"npm could not install TypeScript: {reason}")
    (folder / "installed").write_text(manifest)
    return folder


def test_scripts_pass_the_type_checker(packages: Path) -> None:
    types = packages / "node_modules" / "preact" / "src" / "index.d.ts"
    paths = {"preact": [str(types)]}
    files = [
        str(types),
        *map(str, sorted((EXPLORER / "app").glob("*.js"))),
        *map(str, (EXPLORER / "app").glob("*.d.ts")),
    ]
    config = packages / "tsconfig.json"
    config.write_text(json.dumps({"compilerOptions": {**OPTIONS, "paths": paths}, "files": files}))
    command = [packages / "node_modules" / ".bin" / "tsc", "--project", config, "--pretty", "false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_asks_to_be_checked() -> None:
    for script in (EXPLORER / "app").glob("*.js"):
        assert script.read_text().startswith("// @ts-check\n"), script.name
        assert "@ts-ignore" not in script.read_text()
        assert "@ts-nocheck" not in script.read_text()
