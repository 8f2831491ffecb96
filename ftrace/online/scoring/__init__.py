"""From contributions and query gradients to scores."""
