"""A model in use: statistics and loss over text, text from it, and what it does without a part."""
