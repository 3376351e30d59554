"""Table of all commands, from which help is printed without importing any of them."""

from __future__ import annotations

import json
from pathlib import Path

#: The commands by group, in the order of help, each with its module in this folder and the first sentence of its help.
GROUPS: dict[str, dict[str, tuple[str, str]]] = json.loads(Path(__file__).with_name("commands.json").read_text())
#: Commands that speak to a service, which need none of the server's packages; and those of the operator's machine.
APPS, MACHINE = GROUPS.values()
COMMANDS = {**APPS, **MACHINE}

USAGE = """\
Usage: builderd [OPTIONS] COMMAND [ARGS]...

  Turn code into running, isolated apps with a live URL.
"""
OPTIONS = """\
Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.
"""


def help_text() -> str:
    """Return the text of ``builderd --help``."""
    width = max(map(len, COMMANDS)) + 2
    sections = (
        f"{title}:\n" + "".join(f"  {name:<{width}}{line}\n" for name, (_, line) in group.items())
        for title, group in GROUPS.items()
    )
    return "\n".join([USAGE, OPTIONS, *sections])
