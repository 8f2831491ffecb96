"""A stand-in for the Hugging Face hub with one data set, and FtraceTrex reading it: in a process of its own.

    python fake_hub.py FOLDER CACHE

FOLDER holds what the branch ``refs/convert/parquet`` of ``ekinakyurek/ftrace`` holds. Prints the number of rows and the
queries' proponents as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FOLDER, CACHE = Path(sys.argv[1]), Path(sys.argv[2])
REPOSITORY, BRANCH, COMMIT = "ekinakyurek/ftrace", "refs/convert/parquet", "0" * 40


class Hub(BaseHTTPRequestHandler):
    """The few calls of the hub's interface that reading a branch takes."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = f"/api/datasets/{REPOSITORY}"
        if path == f"{api}/revision/{BRANCH}":
            self._answer_json({"id": REPOSITORY, "sha": COMMIT, "siblings": [], "tags": [], "private": False})
        elif path.startswith(f"{api}/tree/{BRANCH}"):
            self._answer_json(_entries(path.removeprefix(f"{api}/tree/{BRANCH}").strip("/")))
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/{BRANCH}/"):
            content = (FOLDER / path.split(f"{BRANCH}/")[1]).read_bytes()
            self._answer(content, {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": COMMIT})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _answer_json(self, content: Any) -> None:
        self._answer(json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def _entries(folder: str) -> list[dict[str, Any]]:
    """What is directly in a folder."""
    return [
        {
            "type": "file" if path.is_file() else "directory", "path": str(path.relative_to(FOLDER)), "oid": COMMIT,
            "size": path.stat().st_size if path.is_file() else 0,
        }
        for path in sorted((FOLDER / folder).iterdir())
    ]  # fmt: skip


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    os.environ.update(HF_ENDPOINT=address, HF_HOME=str(CACHE / "hub"), HF_HUB_OFFLINE="0", HF_HUB_DISABLE_TELEMETRY="1")
    from ftrace.data import FtraceTrex  # reads the environment

    data = FtraceTrex(data_dir=str(CACHE))
    data.prepare_data()
    data.setup()
    proponents = {query: ids.tolist() for query, ids in data.proponents.items()}
    print(json.dumps({"rows": len(data.train_rows), "proponents": proponents}))


if __name__ == "__main__":
    main()
