"""Measurements of a model: statistics and loss over text, generation, and interventions."""
