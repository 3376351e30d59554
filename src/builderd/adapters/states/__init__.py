"""The service's own state outside of it: a folder that can be carried away."""
