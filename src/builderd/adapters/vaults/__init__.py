"""Vaults and their keys."""
