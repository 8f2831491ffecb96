"""A gradient index: the run and the rows that it is of, and whether its files are whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ftrace.console import PlainConsole
from ftrace.data import FactCorpus, FactData
from ftrace.index import GradientIndex
from ftrace.progress import track
from ftrace.run_folder import newest_run
from ftrace.runs import Run


@dataclass(frozen=True)
class Corpus:
    """The run and the rows that an index is of.

    Args:
        run: The run whose model it is.
        data: The rows that its ids are of.
    """

    run: Run
    data: FactData

    @staticmethod
    def of(index: GradientIndex, run: str | Run | None, trust: bool = False) -> Corpus:
        """Open the corpus of an index.

        Args:
            index: The index.
            run: Its run, or the run's folder, or the one that its versions are in; default: as the index says.
            trust: As :class:`Run` takes it, of a folder.

        Raises:
            ValueError: If the index doesn't say which run it is of, or its rows are other rows by now.
        """
        noted = index.manifest.get("run")
        if isinstance(run, Run):
            opened = run
        else:
            folder = newest_run(run) if run else (index.folder / noted if noted else index.folder.absolute().parent)
            opened = Run(folder.resolve(), trust)
        files = index.manifest.get("corpus")
        data = opened.data if files is None else corpus_of(opened, files)
        known = index.manifest.get("data")
        if known is not None and known != data.fingerprint:
            raise ValueError(
                f"{str(index.folder)!r} is of other data than {str(data.data_path)!r}: expected the fingerprint "
                f"{known}, found {data.fingerprint}"
            )
        return Corpus(opened, data)


def corpus_of(run: Run, files: Sequence[str]) -> FactData:
    """Load another corpus in the tokens of a run's model, with the run's queries."""
    known = run.data
    settings = replace(
        known.settings, data_dir=str(known.data_path.parent), tokenizer=known.tokenizer_source, num_queries=None
    )
    data = FactCorpus(list(files), str(known.data_path / "queries.parquet"), **asdict(settings))
    data.prepare_data()
    data.setup()
    return data


def check_index(opened: GradientIndex) -> None:
    """Read all files, and check them against their digests.

    Raises:
        ValueError: If a file is damaged, by name.
    """
    count = sum(1 for _ in track(opened.checked_files(), "files checked"))
    PlainConsole().print(f"All {count} files of {opened.folder} are as they were written", soft_wrap=True)


def left_out(made: GradientIndex) -> str:
    """Say which parameters an index doesn't cover."""
    names = made.manifest["left_out"]
    return f"{len(names)} parameters, such as {names[0]}" if names else "nothing"
