"""The state that is restored after our own passes, so that they leave no trace in training."""
