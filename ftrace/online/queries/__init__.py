"""The queries: their losses and their gradients."""
