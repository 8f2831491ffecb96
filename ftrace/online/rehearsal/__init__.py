"""Rehearsals of the training step, which find out whose rows are whose.

A layer's tensors hold many rows: slices along the axis, or axes, of the examples. *Whose rows are whose* is the
assignment of these rows to the examples of the batch. It is found out by running the step with some examples' inputs
exchanged for others': the rows that change are theirs.
"""
