"""Logs of builders: of their runs and builds."""
