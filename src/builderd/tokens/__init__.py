"""Tenants, their API tokens and limits, and sign-in by OpenID Connect."""
