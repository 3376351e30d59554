"""Table of all commands, from which help is printed without importing any of them."""

from __future__ import annotations

#: The command's module in this folder, and the first sentence of its help. A plain tuple: ``dataclasses`` would
#: double the time of help.
Entry = tuple[str, str]

#: Commands that speak to a service. They need none of the server's packages.
APPS: dict[str, Entry] = {}

#: Commands that act on this machine, for the operator.
MACHINE: dict[str, Entry] = {
    "serve": ("service", "Run the service in the foreground."),
    "token": ("tokens", "Create, list and revoke API tokens."),
    "vault": ("vault", "Manage the key of stored secrets."),
    "backup": (
        "state",
        "Back up the service's own state to FOLDER: the database, the files of versions, and the keys, sealed.",
    ),
    "restore": ("state", "Restore the state in FOLDER into a data directory without a database."),
    "down": ("service", "Stop all sandboxes and previews and remove what they use on the host."),
    "review": ("review", "Review the code in a folder."),
    "doctor": ("service", "Run preflight checks, and show storage by tenant."),
    "base": ("service", "The base root file system that all sandboxes of this machine share."),
    "install-service": ("service_unit", "Write a systemd unit for the service and enable it at boot."),
}

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
    groups = {"Your apps": APPS, "This machine": MACHINE}
    sections = (
        f"{title}:\n" + "".join(f"  {name:<{width}}{line}\n" for name, (_, line) in group.items())
        for title, group in groups.items()
    )
    return "\n".join([USAGE, OPTIONS, *sections])
