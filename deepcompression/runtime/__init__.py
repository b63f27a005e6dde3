"""Inference from the compressed form: layers that multiply by column indices and codes, and hold no dense weight."""
