"""Commands that speak to a service over its API, from any machine."""
