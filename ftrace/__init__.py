"""ftrace: which training examples taught a language model this fact, how much, and where in the model it lives."""

from importlib.metadata import version

from ftrace.source_tree import import_from_clone

import_from_clone()

__version__ = version("ftrace")
