"""``python -m flows bench``: how fast a finished run's model runs in each way that it can, and what that takes."""
