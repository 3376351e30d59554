"""Detection of a project's kind and of its commands. Reads names and texts; runs nothing."""
