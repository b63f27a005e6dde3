"""What people look at: the page, its figures and words."""
