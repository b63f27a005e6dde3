"""What must stay true of a tensor while it is trained, and after each stage."""
