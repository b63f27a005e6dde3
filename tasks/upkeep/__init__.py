"""What keeps a store and its runs in order."""
