"""Training: `fit` is the loop, the rest is what it calls."""
