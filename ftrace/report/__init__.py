"""What a person looks at."""

from ftrace.report.worked_queries import WorkedQuery, render_worked_query

__all__ = ["WorkedQuery", "render_worked_query"]
