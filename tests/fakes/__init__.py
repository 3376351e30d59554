"""One stand-in per port for tests, held to the same contract tests as the real adapter."""
