"""Files of what was retrieved for each query: their format, their metrics, and their tables."""
