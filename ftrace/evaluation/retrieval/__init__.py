"""Score stores side by side: pools of candidates, metrics with intervals, and the tables."""
