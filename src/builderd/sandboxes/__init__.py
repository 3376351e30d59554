"""Sandboxes of builders as records: which runs, what it used, how it ended."""
