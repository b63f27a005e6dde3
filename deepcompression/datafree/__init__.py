"""Checkpoints pruned and shared tensor by tensor, without data, training or torch."""
