"""Formatting of HAProxy's configuration: sections and quoted words."""

from __future__ import annotations


def section(title: str, *lines: str) -> str:
    """Return a section with its lines indented evenly and without empty lines."""
    kept = (line.strip() for block in lines for line in block.splitlines())
    return "\n".join((title, *(f"    {line}" for line in kept if line), ""))


def quoted(text: object) -> str:
    """Quote any text as one word of a configuration line."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
