"""A model over a dataset: streamed statistics, and what changes when a part of it is replaced."""
