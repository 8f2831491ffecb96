"""ftrace: which training examples taught a language model this fact, how much, and where in the model it lives."""

from importlib.metadata import version

__version__ = version("ftrace")
