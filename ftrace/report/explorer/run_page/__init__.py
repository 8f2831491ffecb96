"""What a report says of a run as a whole: evaluation, ledger, causal averages, manifests, commands to test it."""
