"""The writing of a gradient index while a model trains."""
