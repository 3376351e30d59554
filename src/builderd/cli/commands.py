"""Table of all commands, from which help is printed without importing any of them."""

from __future__ import annotations

#: The command's module in this folder, and the first sentence of its help. A plain tuple: ``dataclasses`` would
#: double the time of help.
Entry = tuple[str, str]

#: Commands that speak to a service. They need none of the server's packages.
APPS: dict[str, Entry] = {
    "login": ("apps.accounts", "Sign in to a service and keep the token."),
    "logout": ("apps.accounts", "Forget a service and its token on this machine."),
    "context": ("apps.accounts", "List, choose and forget services."),
    "whoami": ("apps.accounts", "Show the service in use and what its token may do."),
    "init": ("apps.deploying", "Write a builder.toml for a folder: its name and what starts it."),
    "schema": ("apps.deploying", "Print the JSON schema of builder.toml."),
    "deploy": ("apps.deploying", "Deploy a folder: create a builder, or a new version of the one there is."),
    "run": ("apps.deploying", "Run a folder's code as a job: show its log, fetch its output, and exit with its code."),
    "ps": ("apps.lifecycle", "List your builders."),
    "status": (
        "apps.lifecycle",
        "Show a builder: its status with the reason, its address, version, resources and cost.",
    ),
    "open": ("apps.lifecycle", "Open a builder's address in the browser, and print it."),
    "preview-links": ("apps.upkeep", "Share a private preview, or one of its ports, for a time."),
    "logs": ("apps.inside", "Show the log of a builder: of its app, and of the installation of its dependencies."),
    "exec": (
        "apps.inside",
        "Run a command beside the app, and exit with its code (124 when it is killed after --limit).",
    ),
    "shell": ("apps.inside", "Open a login shell in a builder's sandbox."),
    "ssh": ("apps.inside", "Log in to a builder by SSH."),
    "port-forward": (
        "apps.inside",
        "Forward a local port to one of a builder's, through the SSH gateway, until Ctrl-C.",
    ),
    "cp": (
        "apps.inside",
        "Copy a file or a folder from or to a builder: NAME:PATH names one there, .:PATH one of this folder's builder.",
    ),
    "files": ("apps.inside", "List, show, fetch and delete the files of a builder."),
    "env": ("apps.lifecycle", "List and change the environment variables of a builder."),
    "domains": ("apps.upkeep", "Give a builder host names of your own, with certificates."),
    "credentials": ("apps.tenancy", "Store secrets, which builders get and nobody can read back."),
    "versions": ("apps.lifecycle", "List the versions of a builder."),
    "diff": ("apps.lifecycle", "Show how two versions differ: their files, as a unified diff, and their settings."),
    "rollback": ("apps.lifecycle", "Deploy an old version again, as a new one."),
    "clear-builds": ("apps.lifecycle", "Remove the kept results of a builder's builds; a rollback builds again."),
    "scale": ("apps.lifecycle", "Change the resources of a builder."),
    "start": ("apps.lifecycle", "Start a builder and wait until it is up."),
    "stop": ("apps.lifecycle", "Stop a builder; its files and settings are kept."),
    "restart": ("apps.lifecycle", "Stop a builder if it runs, and start it."),
    "auto-stop": ("apps.lifecycle", "Set after how many minutes without use a builder stops by itself; 0: never."),
    "service-token": (
        "apps.lifecycle",
        "Replace the service token of a builder, and restart its app with the new one.",
    ),
    "delete": ("apps.lifecycle", "Delete a builder with its files."),
    "review": ("apps.gates", "Review the code in a folder, or show the review of a builder."),
    "qa": ("apps.gates", "Show whether an app works: the verdict of the gate, and the report."),
    "backups": ("apps.upkeep", "List, take, restore and remove backups."),
    "leases": ("apps.upkeep", "Keep a builder busy: neither frozen nor stopped for idleness."),
    "events": ("apps.upkeep", "Show what happened to a builder, or without NAME to all of yours; oldest first."),
    "metrics": ("apps.upkeep", "Show the use of a builder: now, and over the last hours."),
    "spending": ("apps.tenancy", "Show what your builders have cost, deleted ones included."),
    "cap": ("apps.tenancy", "Show or set the monthly spending cap, of a builder or of all together."),
    "webhooks": ("apps.tenancy", "Have events sent to a URL."),
    "tokens": ("apps.tenancy", "Make, list and revoke API tokens of your tenant, over the API."),
    "api": ("apps.tools", "Send any call of the API, such as: builderd api GET /builders."),
    "completion": ("apps.tools", "Print the completion script of a shell, for its start-up file."),
    "man": ("apps.tools", "Print the manual page, of one command or of all: builderd man | man -l -"),
    "mcp": ("apps.mcp", "Serve agents over stdio (Model Context Protocol), or add builderd to their configuration."),
}

#: Commands that act on this machine, for the operator.
MACHINE: dict[str, Entry] = {
    "setup": (
        "service",
        "Install Debian packages and the base root file system, which the service needs on this machine.",
    ),
    "serve": ("serve", "Run the service in the foreground."),
    "token": ("upkeep", "Create, list and revoke API tokens."),
    "acme": ("upkeep", "Manage the service's own certificates and its account at the certificate authority."),
    "clock": ("upkeep", "Mend what a wrong clock of this machine left."),
    "vault": ("upkeep", "Manage the key of stored secrets."),
    "backup": (
        "service",
        "Back up the service's own state to FOLDER: the database, the files of versions, and the keys, sealed.",
    ),
    "restore": ("service", "Restore the state in FOLDER into a data directory without a database."),
    "down": ("service", "Stop all sandboxes and previews and remove what they use on the host."),
    "cluster": (
        "cluster",
        'Form, join, show, evacuate and shrink the cluster of Incus that the service works on (engine = "incus").',
    ),
    "doctor": ("apps.tools", "Run preflight checks, and show storage by tenant."),
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
