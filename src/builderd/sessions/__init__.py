"""Sessions of people, and what ends with a revoked token."""
