"""``ftrace study``: several trainings and several methods that answer one question with a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ftrace.arguments import Name, Positive, checked
from ftrace.attribution import known_methods
from ftrace.commands.endings import say_kept
from ftrace.console import PlainConsole
from ftrace.files.claims import claimed
from ftrace.studies import Study


def add_arguments(command: ArgumentParser) -> None:
    """Add the command's arguments."""
    known_methods()  # imports them, so that a study may name their classes without a path
    command.add_function_arguments(study)


def command(**options: Any) -> None:
    """Train, score and compare what a study asks for, and write a table and a picture."""
    study(**options)


@checked
def study(
    settings: Study, output_dir: Name = "runs/studies", train_script: Name | None = None, jobs: Positive = 1
) -> None:
    """Train, score and compare what a study asks for, and write a table and a picture.

    Args:
        settings: The study.
        output_dir: The folder of runs and results. What is finished there is not done again, so an interrupted study
            continues, and studies share the runs that they have in common.
        train_script: A script that trains a run from a config, instead of ``ftrace fit``.
        jobs: How many trainings to run at a time.
    """
    from ftrace.studies import do_study  # with it come torch and Lightning
    from ftrace.studies.results import report_study

    folder = Path(output_dir)
    with claimed(folder / settings.name, "ftrace study"):
        say_kept(f"Finished trainings and scores are kept in {folder}; the same command goes on with them.")
        runs = do_study(settings, folder / "runs", None if train_script is None else Path(train_script), jobs)
        files = report_study(settings, runs, folder / settings.name, PlainConsole())
    PlainConsole().print(f"Wrote {files[0]} and {files[1]}", soft_wrap=True)
