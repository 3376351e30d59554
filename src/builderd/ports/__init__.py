"""Ports: small protocols for everything that builderd needs from the outside."""
