"""Layers of given weights reconstructed on samples: pruned, shared or rounded, and what is lost made up for."""
