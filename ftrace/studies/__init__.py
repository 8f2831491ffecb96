"""Studies: several trainings, several methods, one question; each ends in a table and a picture."""

from ftrace.studies.settings import Study, Variant
from ftrace.studies.work import StudyRun, do_study

__all__ = ["Study", "StudyRun", "Variant", "do_study"]
