"""A notebook in which stores are read is executed, and shows tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from ftrace.scores import ScoreStore
from helpers.made_stores import made_ledger, named_store

SOURCES = (
    'from ftrace.scores import ScoreStore\nstore = ScoreStore.open("store")\nstore',
    "store.ledger",
    'store.to_pandas("who", k=2)',
    "store.to_pandas()",
    'store.to_xarray().sel(kind="dot", query="who")',
    'print(store)\nimport sys\nprint("torch" in sys.modules)',
)


def test_a_notebook_shows_tables_with_texts_as_texts(tmp_path: Path) -> None:
    named = named_store(tmp_path / "named")
    ids = named.example_ids, named.query_ids
    ledger = made_ledger(ids[1].tolist())
    ScoreStore.write(
        tmp_path / "store",
        *ids,
        {"dot": named.matrix("dot")},
        ledger=ledger,
        examples=named.examples,
        queries=named.queries,
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in SOURCES])
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    *shown, printed = [cell.outputs[0] for cell in notebook.cells]
    pages = [output.data["text/html"] for output in shown]
    assert "<td" in pages[0]
    assert "strongest proponent" in pages[0]
    assert "the queries learned" in pages[1]
    assert "Oslo, Norway" in pages[2]
    assert "wiki/1" in pages[3]
    assert "values with dtype" in pages[4]
    assert not any("<script>alert" in page for page in pages)
    assert printed.text.startswith("ScoreStore('store'): 4 examples x 2 queries\n")
    assert printed.text.endswith("False\n")


def test_a_store_is_read_without_torch(tmp_path: Path) -> None:
    """And pandas and xarray, which take long, are imported when they are needed."""
    named_store(tmp_path / "store")
    check = (
        "import sys\nfrom ftrace.scores import ScoreStore\n"
        "store = ScoreStore.open(sys.argv[1])\nprint(store, store._repr_html_(), store.top('where', texts=True))\n"
        "assert not {'torch', 'pandas', 'xarray', 'lightning'} & set(sys.modules)\n"
        "store.to_pandas('where'), store.to_xarray()\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", check, tmp_path / "store"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
