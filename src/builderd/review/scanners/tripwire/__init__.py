"""The built-in scanner: a process kept warm, confined, that forks again for each review."""
