"""Implementations of the store port, one package per kind of database."""
