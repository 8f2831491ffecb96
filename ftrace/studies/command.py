"""``ftrace study``: several trainings, several methods, one question, one table and one picture."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ftrace.studies import Study, do_study
from ftrace.studies.results import report_study


def study(settings: Study, output_dir: str = "runs/studies", train_script: str = "train.py", jobs: int = 1) -> None:
    """Train, score and compare what a study asks for; ends in a table and a picture.

    Args:
        settings: The study.
        output_dir: Where runs and results go. What is finished there is not done again, so a study that was interrupted
            goes on, and studies share the runs that they have in common.
        train_script: Lightning's command line.
        jobs: How many trainings at a time.
    """
    folder = Path(output_dir)
    runs = do_study(settings, folder / "runs", Path(train_script), jobs)
    files = report_study(settings, runs, folder / settings.name, Console())
    Console().print(f"Wrote {files[0]} and {files[1]}", soft_wrap=True)
