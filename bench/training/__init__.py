"""Training: the loop, which exists once, and what it leaves on disk."""
