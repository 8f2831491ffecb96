"""The optimizers of a run, the parameters that they train, and the clipping of their gradients."""
