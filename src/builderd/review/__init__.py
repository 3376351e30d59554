"""Review of code before it runs: scanners, verdicts, acceptances."""
