"""A gradient index that is written while a model trains."""
