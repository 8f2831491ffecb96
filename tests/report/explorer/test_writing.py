"""Reports on disk: whole or not at all, in one file or a folder, and nothing but an earlier report is replaced."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftrace.report.explorer.page import writing
from ftrace.report.explorer.page.chunks import decode_chunk
from ftrace.report.explorer.page.writing import write_report
from helpers.report_parts import small_head

CHUNKS: list[tuple[str, dict[str, Any]]] = [
    ("head", small_head()),
    *(
        (f"query-{number}", {"id": str(2**62 + number), "text": f"</script>\u202e{number}\ud800"})
        for number in range(3)
    ),
    ("example-0", {"examples": []}),
]


def chunks_of(written: Path) -> dict[str, dict[str, Any]]:
    """Read a report's chunks back, whichever form it has."""
    if written.name == "index.html":
        scripts = sorted((written.parent / "chunks").iterdir())
        pairs = [re.fullmatch(r'ftraceChunk\("(.*)","(.*)"\);\n', script.read_text()) for script in scripts]
        assert [pair and f"{pair[1]}.js" for pair in pairs] == [script.name for script in scripts]
        return {pair[1]: decode_chunk(pair[2]) for pair in pairs if pair}
    islands = re.findall(
        r'<script type="application/octet-stream" id="chunk-(.*?)">(.*?)</script>', written.read_text()
    )
    return {name: decode_chunk(text) for name, text in islands}


@pytest.mark.parametrize("single_file", [True, False])
@pytest.mark.parametrize("out", ["my runs #1/a 100%.html", "my runs #1/a 100%"])
def test_chunks_come_back_and_equal_input_gives_equal_bytes(tmp_path: Path, out: str, single_file: bool) -> None:
    written = write_report(tmp_path / out, CHUNKS, title="A report", single_file=single_file)
    assert written == tmp_path / "my runs #1" / ("a 100%.html" if single_file else "a 100%/index.html")
    assert chunks_of(written) == dict(CHUNKS)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    write_report(tmp_path / out, CHUNKS, title="A report", single_file=single_file)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files


def test_large_report_becomes_a_folder_and_takes_the_place_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    assert write_report(out, CHUNKS, title="") == out
    monkeypatch.setattr(writing, "MAX_FILE_BYTES", out.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"up to 0 MB as one file, found more.*or write a folder"):
        write_report(out, CHUNKS, title="", single_file=True)
    assert write_report(out, CHUNKS, title="") == tmp_path / "report" / "index.html"
    assert list(tmp_path.iterdir()) == [tmp_path / "report"]
    monkeypatch.setattr(writing, "MAX_FILE_BYTES", writing.MAX_FILE_BYTES + 1)
    assert write_report(out, CHUNKS, title="") == out
    assert list(tmp_path.iterdir()) == [out]
    monkeypatch.setattr(writing, "MAX_FOLDER_BYTES", 1000)
    with pytest.raises(ValueError, match=r"as a folder, found more\. Choose fewer queries"):
        write_report(out, CHUNKS, title="")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("single_file", [True, False])
def test_failed_report_leaves_the_earlier_one(tmp_path: Path, single_file: bool) -> None:
    def broken() -> Iterator[tuple[str, dict[str, Any]]]:
        yield CHUNKS[0]
        raise KeyError("texts are gone")

    written = write_report(tmp_path / "report", CHUNKS, title="", single_file=single_file)
    before = written.read_bytes()
    with pytest.raises(KeyError, match="texts are gone"):
        write_report(tmp_path / "report", broken(), title="", single_file=single_file)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(tmp_path / "report", [("head", {"loss": float("nan")})], title="", single_file=single_file)
    assert written.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "report.html",
            "<!doctype html>\n<title>Holiday</title>",
            r"report\.html'.*it is another file. Name another path",
        ),
        ("report/index.html", "<!doctype html>\n", "the folder holds other files. Name another path"),
        ("report", "my notes", "but it is a file. Name another path"),
        ("report.html/photo.png", "", "it is another folder"),
    ],
)
def test_nothing_else_is_replaced(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)

    def unasked() -> Iterator[tuple[str, dict[str, Any]]]:
        raise AssertionError
        yield

    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report", unasked(), title="")
    assert (tmp_path / name).read_text() == content


def test_folder_of_a_report_with_a_file_of_the_readers_is_kept(tmp_path: Path) -> None:
    write_report(tmp_path / "report", CHUNKS, title="", single_file=False)
    (tmp_path / "report" / "notes.json").write_text("{}")
    with pytest.raises(ValueError, match="holds other files"):
        write_report(tmp_path / "report", CHUNKS, title="")
    write_report(tmp_path / "report", CHUNKS, title="", single_file=True)
    assert (tmp_path / "report" / "notes.json").exists()


def test_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="working directory"):
        write_report(tmp_path, CHUNKS, title="")


@pytest.mark.parametrize("out", ["", ".", "..", "/", ".html"])
def test_path_without_a_name(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected the name of a file"):
        write_report(out, CHUNKS, title="")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("problem", ["a file", "a circle"])
def test_where_nothing_can_be_written_is_found_before_a_chunk_is_made(tmp_path: Path, problem: str) -> None:
    if problem == "a file":
        (tmp_path / "there").write_text("mine")
    else:
        (tmp_path / "there").symlink_to("there")

    def chunks() -> Iterator[Any]:
        raise AssertionError
        yield

    with pytest.raises(ValueError, match="won't write a report to"):
        write_report(tmp_path / "there" / "report.html", chunks(), title="")


def test_of_a_link_to_an_earlier_report_the_link_is_removed(tmp_path: Path) -> None:
    write_report(tmp_path / "elsewhere", CHUNKS, title="", single_file=False)
    (tmp_path / "report").symlink_to("elsewhere")
    assert chunks_of(write_report(tmp_path / "report.html", CHUNKS, title="")) == dict(CHUNKS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "report.html"]
    assert chunks_of(tmp_path / "elsewhere" / "index.html") == dict(CHUNKS)
