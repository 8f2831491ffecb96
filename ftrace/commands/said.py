"""What the model of a finished run answers to queries, each of which it is asked once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ftrace.commands.free_cores import use_free_cores
from ftrace.console import PlainConsole
from ftrace.files.yaml_files import read_yaml
from ftrace.run_folder import CONFIG, fresh_answers, last_snapshot
from ftrace.runs import Run
from ftrace.views import Said

_ASKED = "FactLM"


def said_in_run(run: Path, query_ids: Collection[int], trust: bool = False) -> dict[int, Said]:
    """Return what a run's model answers at its last snapshot; of a model that can't be asked, what is known.

    Answers are kept in the run's folder. A line on stderr tells that the model is asked.

    Args:
        run: The run's folder.
        query_ids: Ids of queries. One that the run doesn't know has no answer.
        trust: As :class:`ftrace.runs.Run` takes it.

    Raises:
        UntrustedError: If the model is to be asked, and the run names classes that aren't ftrace's own.
    """
    snapshot = last_snapshot(run)
    if snapshot is None:
        return {}
    answers = {query: Said(**answer, snapshot=snapshot.name) for query, answer in fresh_answers(run).items()}
    lacking = [query for query in query_ids if query not in answers]
    if lacking and _may_be_asked(run):
        PlainConsole(stderr=True).print(f"Asking the model of {run} at {snapshot.name}, once ...", soft_wrap=True)
        use_free_cores()
        given = Run(run, trust).answers(lacking)
        answers |= {query: Said(**vars(answer), snapshot=snapshot.name) for query, answer in given.items()}
    return {query: answers[query] for query in query_ids if query in answers}


def _may_be_asked(run: Path) -> bool:
    """Tell whether the model of a run is one that can be loaded and asked, by its config."""
    model = read_yaml(run / CONFIG).get("model")
    return isinstance(model, dict) and str(model.get("class_path", "")).rpartition(".")[2] == _ASKED
