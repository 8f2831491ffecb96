"""A traced run in any training loop: contributions, scores, ledger, checks, resuming. Knows nothing of Lightning."""
