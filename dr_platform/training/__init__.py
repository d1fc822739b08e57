"""Training: the state, one step, the loop, and what it reports."""
