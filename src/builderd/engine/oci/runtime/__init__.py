"""Sandboxes as processes: runtimes, the shim, limits, commands, logs."""
