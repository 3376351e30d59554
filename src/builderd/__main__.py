"""``python -m builderd`` is the command line."""

from builderd.doors.cli.main import main

main()
