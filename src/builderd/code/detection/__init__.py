"""Detection of what a folder of code is and what starts it. Reads names and texts; runs nothing."""
