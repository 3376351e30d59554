"""Live files on the disk of a builder."""
