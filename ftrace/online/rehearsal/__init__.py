"""Whose rows are whose: found by running the training step with some examples' inputs exchanged."""
