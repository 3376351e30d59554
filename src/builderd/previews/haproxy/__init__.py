"""Previews through HAProxy."""
