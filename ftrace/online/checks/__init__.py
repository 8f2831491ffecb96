"""Checks of the per-example gradients that hooks read: against plain autograd, and against the gradient of the step."""
