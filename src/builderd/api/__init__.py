"""The HTTP door: turns requests into commands and answers into JSON. It alone knows status numbers."""
