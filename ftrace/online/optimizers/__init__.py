"""The optimizers of a run, the parameters that they train, and how their gradients are clipped."""
