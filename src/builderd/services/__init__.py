"""Use cases of builderd, one file for each noun."""
