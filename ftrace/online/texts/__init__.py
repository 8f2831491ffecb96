"""Texts of a run's examples and queries, which its store keeps beside scores."""
