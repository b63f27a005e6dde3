"""What each tensor gets: densities and bits, for a size or a loss."""
