"""Code of apps: bundles, uploads, and what in it starts a project."""
