"""``builderd install-service``: write a systemd unit that keeps apps and previews running over restarts.

The directives are those of systemd.service(5), systemd.unit(5) and systemd.kill(5).
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from builderd.bootstrap import tokens
from builderd.bootstrap.configuration import load
from builderd.bootstrap.data_directory import is_ours, lock
from builderd.cli import options
from builderd.core.errors import BuilderdError
from builderd.settings import Settings

#: Exists when systemd is the init process (sd_booted(3)).
SYSTEMD_RUNS = Path("/run/systemd/system")
SYSTEM_UNITS = Path("/etc/systemd/system")
UNIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")

TEMPLATE = Path(__file__).with_name("unit.service").read_text()

OWN_SETTINGS = """\
Settings in {data_dir}/builderd.toml are for the service and for commands. Those in /etc/default/{name} are the
service's alone: before a command in a shell, such as builderd backup, give it the same:
  set -a; . /etc/default/{name}; set +a"""


def render(name: str, executable: Path, data_dir: Path, serve_options: Sequence[str] = ()) -> str:
    """Return the text of the unit ``name`` (without ``.service``), with further arguments of ``builderd serve``.

    Raises ``ValueError`` for a wrong name, relative paths, control characters.
    """
    if not UNIT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no unit name: use letters, digits, '_', '.' and '-'")
    for path in (executable, data_dir):
        if not path.is_absolute():
            raise ValueError(f"{path} is not absolute: systemd starts the service in another working directory")
    arguments = ("serve", "--data-dir", str(data_dir), *serve_options)
    # systemd expands no variables in the program's own path, so a dollar in it is not doubled.
    command = " ".join([quote(str(executable)), *(quote(word).replace("$", "$$") for word in arguments)])
    return TEMPLATE.format(
        name=name, command=command, data_dir=str(data_dir).replace("%", "%%"), data_dir_list=quote(str(data_dir))
    )


def quote(word: str) -> str:
    """Quote one word of a command or list by systemd.syntax(7). Raises ``ValueError`` for control characters."""
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in word):
        raise ValueError(f"{word!r} has a control character, which a unit file cannot have")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if re.fullmatch(r"[\w@%+=:,./$-]+", word, re.ASCII) else f'"{escaped}"'


@click.command("install-service")
@click.option("--name", default="builderd", show_default=True, help="Name of the unit; one for each data directory.")
@options.data_dir
@click.option("--host", help="Passed on to builderd serve.")
@click.option("--port", type=click.IntRange(1, 65535), help="Passed on to builderd serve.")
@click.option("--preview-port", type=click.IntRange(1, 65535), help="Passed on to builderd serve.")
@click.option("--now", is_flag=True, help="Start it as well, or restart it if it runs.")
@click.option("--unit-dir", type=click.Path(path_type=Path), help="Only write the unit, into this folder.")
def install_service(
    name: str, data_dir: Path | None, now: bool, unit_dir: Path | None, **serve_options: str | int | None
) -> None:
    """Write a systemd unit for the service and enable it at boot.

    Apps and previews keep running when the service restarts. Settings may be BUILDERD_… variables in
    /etc/default/NAME, which commands in a shell do not see: settings that commands need too, such as database_url and
    vault.key_file, belong in builderd.toml in the data directory.
    """
    folder = load(data_dir=data_dir).data_dir.resolve()
    executable = Path(sys.executable).with_name("builderd")
    if not executable.is_file():
        raise click.ClickException(f"{executable} does not exist: install the package into its environment first")
    given = [
        (f"--{name.replace('_', '-')}", str(value))
        for name, value in sorted(serve_options.items())
        if value is not None
    ]
    try:
        text = render(name, executable, folder, [word for option in given for word in option])
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    path = (unit_dir or SYSTEM_UNITS) / f"{name}.service"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {path}: {error.strerror}; run it as root") from error
    click.echo(f"wrote {path}")
    click.echo(OWN_SETTINGS.format(name=name, data_dir=folder))
    if unit_dir is None and _enable(name, folder, now):
        _print_link(load(data_dir=data_dir, host=serve_options["host"], port=serve_options["port"]))


def _print_link(settings: Settings) -> None:
    """Print a link that signs a browser in, or the command that makes one."""
    try:
        link = asyncio.run(tokens.first_link(settings))
    except BuilderdError as error:
        # Such as settings that the unit alone has.
        click.echo(f"no sign-in link: {error.message}")
        link = None
    if link is None:
        click.echo("to open its pages in a browser: builderd token link --tenant NAME")
        return
    tenant, url = link
    click.echo(f"its pages, as tenant {tenant!r} (valid once, for 10 minutes; builderd token link makes another):")
    click.echo(url)


def _enable(name: str, data_dir: Path, now: bool) -> bool:
    """Enable the unit, and start it if it is to; return whether it runs now."""
    if not SYSTEMD_RUNS.is_dir():
        click.echo(f"systemd does not run here: where it does, run: systemctl enable --now {name}")
        return False
    _systemctl("daemon-reload")
    _systemctl("enable", f"{name}.service")
    if now:
        # Fail when a service other than the unit's, such as the demo's, has the data directory.
        state = _systemctl("show", "--property=ActiveState", "--value", f"{name}.service").strip()
        if is_ours(data_dir) and state == "inactive":
            with lock(data_dir):
                pass
        _start(name)
    else:
        click.echo(f"it starts at boot; to start or restart it now: systemctl restart {name}")
    return now


def _start(name: str) -> None:
    """Restart the unit, so that a running service gets the new options. Returns once it listens.

    That takes as long as it takes (``TimeoutStartSec``): systemd goes on with it even where this command is ended.
    """
    click.echo(f"starting {name}; its log: journalctl -fu {name}")
    restart = subprocess.run(["systemctl", "restart", f"{name}.service"], capture_output=True, check=False)
    if restart.returncode != 0:
        words = _run("journalctl", "--unit", f"{name}.service", "--lines", "5", "--output", "cat").stdout.strip()
        raise click.ClickException(f"{name} does not start, and systemd retries each second:\n{words}")
    click.echo("it runs")


def _systemctl(*arguments: str) -> str:
    done = _run("systemctl", *arguments)
    if done.returncode != 0:
        raise click.ClickException(f"{' '.join(done.args)} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"{' '.join(command)} did not end within two minutes") from None
