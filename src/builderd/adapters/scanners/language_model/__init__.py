"""A language model that reads code and may ask a person to look at it."""
