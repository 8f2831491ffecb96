"""Pictures of a report's views for papers, from the content of the page, so that picture and page can't differ."""

from ftrace.report.figures.writing import choose_queries, write_figures

__all__ = ["choose_queries", "write_figures"]
