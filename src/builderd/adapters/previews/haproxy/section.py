"""How a piece of HAProxy's configuration is written down."""

from __future__ import annotations


def section(title: str, *lines: str) -> str:
    """A section with its lines indented evenly; those that came out empty are dropped."""
    kept = (line.strip() for block in lines for line in block.splitlines())
    return "\n".join((title, *(f"    {line}" for line in kept if line), ""))


def quoted(text: object) -> str:
    """One word of a configuration line, whatever is in it."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
