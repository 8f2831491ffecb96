"""What a person sees of scores: a query, its strongest examples with their texts, several stores side by side."""

from ftrace.shown_text import plain
from ftrace.views.finding import all_queries, find_query, query_rows, search_queries
from ftrace.views.listed import Listed, ListedQuery, ListedSource
from ftrace.views.making import make_query_line, make_query_view
from ftrace.views.query_list import render_queries
from ftrace.views.query_view import QueryLine, QueryView, Said, title_of
from ftrace.views.question_view import AskedAbout, QuestionView, render_question
from ftrace.views.ranking import Ranking
from ftrace.views.sources import History, Row, Source, StoreSource
from ftrace.views.terminal import CUT, print_view, render_examples, render_query

__all__ = [
    "CUT",
    "AskedAbout",
    "History",
    "Listed",
    "ListedQuery",
    "ListedSource",
    "QueryLine",
    "QueryView",
    "QuestionView",
    "Ranking",
    "Row",
    "Said",
    "Source",
    "StoreSource",
    "all_queries",
    "find_query",
    "make_query_line",
    "make_query_view",
    "plain",
    "print_view",
    "query_rows",
    "render_examples",
    "render_queries",
    "render_query",
    "render_question",
    "search_queries",
    "title_of",
]
