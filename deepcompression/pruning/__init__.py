"""Pruning: what is removed, by which criterion, when."""
