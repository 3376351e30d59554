"""Credentials of tenants, with secret encryption by the vault."""
