"""Quantization: fewer bits for each value."""
