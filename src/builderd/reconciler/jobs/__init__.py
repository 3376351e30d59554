"""Background jobs with a clock of their own."""
