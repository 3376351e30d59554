"""Engines: they run sandboxes, keep disks and make layers."""
