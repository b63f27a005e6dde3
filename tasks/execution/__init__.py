"""How any stage runs: key, lease, work, check, measure, log."""
