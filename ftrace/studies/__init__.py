"""Studies: several trainings and several methods that answer one question with a table and a picture."""

from ftrace.studies.settings import Study, Variant
from ftrace.studies.work import StudyRun, do_study

__all__ = ["Study", "StudyRun", "Variant", "do_study"]
