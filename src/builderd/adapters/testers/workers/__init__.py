"""What runs inside the jail: each file a program of its own, which imports nothing of the house."""
