"""Metrics of builders: sampled usage and visits."""
