"""Studies: several trainings and several methods that answer one question with a table and a picture."""

from typing import TYPE_CHECKING

from ftrace.late_names import late_names

if TYPE_CHECKING:
    from ftrace.studies.settings import Study, Variant
    from ftrace.studies.work import StudyRun, do_study
else:
    __getattr__, __dir__ = late_names(__name__)

__all__ = ["Study", "StudyRun", "Variant", "do_study"]
