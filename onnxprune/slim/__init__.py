"""Structured pruning: which units to remove, how many of each group, and what makes up for them."""
