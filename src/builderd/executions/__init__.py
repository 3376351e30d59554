"""Commands, terminals and SSH in a running builder."""
