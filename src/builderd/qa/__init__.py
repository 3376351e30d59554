"""The QA gate of a new version, and the reports that follow it."""
