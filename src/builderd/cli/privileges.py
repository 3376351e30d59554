"""Check of the rights that a command needs."""

from __future__ import annotations

import os

import click

NEEDS_ROOT = (
    "builderd must run as root: it mounts file systems, makes network links and firewall rules, and starts "
    "sandboxes under user ids of their own, in which nothing is root of this machine. Try: sudo {command}"
)


def require_root(command: str) -> None:
    """Raise ``ClickException`` unless this process is root."""
    if os.geteuid() != 0:
        raise click.ClickException(NEEDS_ROOT.format(command=command))
