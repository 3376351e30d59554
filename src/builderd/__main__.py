"""``python -m builderd`` is the command line."""

from builderd.cli.group import builderd

builderd(prog_name="builderd")
