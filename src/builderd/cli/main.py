"""Entry point of ``builderd``. Answers ``--help`` and ``--version`` from a table, before click is imported."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from builderd import __version__
from builderd.cli.commands import help_text

#: Set by the shell's completion script, which click answers.
COMPLETION = "_BUILDERD_COMPLETE"


def main() -> None:
    """Run the command line."""
    words = sys.argv[1:]
    if COMPLETION not in os.environ and words in ([], ["-h"], ["--help"], ["--version"]):
        sys.stdout.write(f"builderd, version {__version__}\n" if words == ["--version"] else help_text())
        return
    import_module("builderd.cli.group").builderd(prog_name="builderd")
