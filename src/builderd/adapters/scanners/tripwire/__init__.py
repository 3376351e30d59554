"""The built-in scanner: a process kept warm, confined, that forks anew for each review."""
