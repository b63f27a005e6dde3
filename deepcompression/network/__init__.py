"""What a model is: its tensors by name, its state, its graph."""
