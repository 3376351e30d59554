"""Stores of uploads that are not deployed yet."""
