"""Many runs: searches, and who works on them."""
