"""Tail-patch: how a step on one training example changes the probability of a query's target."""
