"""Guide for language models, in agents.md beside this file. The API and the MCP server show parts of it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


@cache
def guide() -> str:
    """Return the whole guide, in Markdown."""
    return Path(__file__).with_name("agents.md").read_text()


def section(title: str) -> str:
    """Return one section of the guide with its title."""
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", guide(), re.MULTILINE | re.DOTALL)
    assert found, f"agents.md has no section {title!r}"
    return found[0].strip()
