"""Files and folders that are written whole, claimed by one process, and verified when they are read. Pure Python."""
