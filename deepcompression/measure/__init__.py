"""What a compressed model is worth: verification and statistics."""
