"""Stages of a deployment: install, start, listen, trial, cutover."""
