"""The computation of scores from contributions and query gradients."""
