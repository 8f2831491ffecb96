"""The run and the rows that a gradient index is of."""

from __future__ import annotations

from dataclasses import dataclass

from ftrace.commands.index import corpus_of
from ftrace.data import FactData
from ftrace.index import GradientIndex
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
