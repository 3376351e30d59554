"""``python -m builderd`` is the command line."""

from builderd.cli.main import main

main()
