"""What builderd does for a user: one file a noun."""
