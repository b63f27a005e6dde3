"""Weight sharing: few values for many weights."""
