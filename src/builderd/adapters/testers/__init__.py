"""Testers that work on this machine: single requests from the service itself, everything else from within a jail."""
