"""``builderd cluster``: form, join, show, empty and shrink the cluster of Incus that the service works on."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import click

from builderd.bootstrap import cluster as bootstrap
from builderd.bootstrap.cluster import Administration, MemberState, Pool
from builderd.cli import options
from builderd.cli.apps.session import Columns, aligned
from builderd.settings import Settings

T = TypeVar("T")
#: So many disks that are left on a member are named.
NAMED_DISKS = 5

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
address = click.option("--address", help="This machine's IPv4 address on the members' network.")
device = click.option("--device", help="A block device that the storage pool gets whole; what is on it is lost.")
size = click.option("--size", help="The size of the storage pool's file without --device, such as 100GiB.")


@click.group()
def cluster() -> None:
    """Form, join, show, evacuate and shrink the cluster of Incus that the service works on (engine = "incus")."""


@cluster.command()
@options.as_root
@click.option("--name", default=socket.gethostname, help="The member's name.  [default: this machine's]")
@address
@device
@size
@as_json
def init(settings: Settings, name: str, address: str | None, **pool: Any) -> None:
    """Make this machine the first member of a new cluster."""
    own = address or bootstrap.default_address()
    shown = pool.pop("as_json")
    _ask(settings, lambda admin: asyncio.to_thread(admin.form, name, own, Pool(**pool)))
    said = f"{name} ({own}) is the first member. Add others: builderd cluster add NAME"
    _print(shown, {"member": name, "address": own}, said)


@cluster.command()
@options.with_settings
@click.argument("name")
@as_json
def add(settings: Settings, name: str, as_json: bool) -> None:
    """Print the token with which another machine joins as the member NAME, once, within three hours."""
    token = _ask(settings, lambda admin: asyncio.to_thread(admin.invite, name))
    _print(as_json, {"member": name, "token": token}, token)


@cluster.command()
@options.as_root
@click.argument("token")
@address
@device
@size
@as_json
def join(settings: Settings, token: str, address: str | None, **pool: Any) -> None:
    """Make this machine a member, with the TOKEN that `builderd cluster add` printed on another one."""
    shown = pool.pop("as_json")
    name = _ask(settings, lambda admin: asyncio.to_thread(admin.join, token, address, Pool(**pool)))
    _print(shown, {"member": name}, f"This machine is the member {name}.")


@cluster.command()
@options.with_settings
@as_json
def status(settings: Settings, as_json: bool) -> None:
    """Show the members: whether they answer, their disks, and what is free. Exits with 1 while one is away."""
    members = _ask(settings, lambda admin: admin.members())
    _print(as_json, [asdict(member) for member in members], _table(members))
    if any(member.status == "Offline" for member in members):
        raise SystemExit(1)


@cluster.command()
@options.with_settings
@click.argument("member")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait at most.  [default: no limit]")
@as_json
def evacuate(settings: Settings, member: str, timeout: float | None, as_json: bool) -> None:
    """Move all builders off MEMBER for its maintenance; the running service does it, one builder after the other.

    Each stops, its disk is moved, and it starts again. Jobs are moved once they have ended. Afterwards the machine may
    be upgraded, restarted or removed.
    """
    last: list[int] = []

    def progress(left: Sequence[str]) -> None:
        if last[-1:] != [len(left)]:
            last.append(len(left))
            named = f": {', '.join(left)}" if len(left) <= NAMED_DISKS else ""
            click.echo(f"{len(left)} disks left on {member}{named}", err=True)

    _ask(settings, lambda admin: admin.evacuate(member, progress, timeout))
    _print(as_json, {"member": member, "moved": max(last, default=0)}, f"{member} is evacuated.")


@cluster.command()
@options.with_settings
@click.argument("member")
@as_json
def restore(settings: Settings, member: str, as_json: bool) -> None:
    """Let MEMBER take builders again after an evacuation; those that were moved stay where they are."""
    _ask(settings, lambda admin: admin.restore(member))
    _print(as_json, {"member": member}, f"{member} takes builders again.")


@cluster.command()
@options.with_settings
@click.argument("member")
@click.option("--force", is_flag=True, help="Also one that does not answer, or has disks: what is on it is lost.")
@as_json
def remove(settings: Settings, member: str, force: bool, as_json: bool) -> None:
    """Remove MEMBER from the cluster for good. Evacuate it first."""
    _ask(settings, lambda admin: admin.remove(member, force=force))
    _print(as_json, {"member": member}, f"{member} is no member any more.")


def _ask(settings: Settings, ask: Callable[[Administration], Awaitable[T]]) -> T:
    async def asked() -> T:
        administration = bootstrap.administration(settings)
        try:
            return await ask(administration)
        finally:
            await administration.close()

    return asyncio.run(asked())


def _print(as_json: bool, data: object, text: str) -> None:
    click.echo(json.dumps(data, indent=2) if as_json else text)


def _table(members: Sequence[MemberState]) -> str:
    columns: Columns = {
        "MEMBER": "name",
        "ADDRESS": "address",
        "STATUS": lambda one: f"{one.status}{' (evacuating)' * (one.evacuating and one.status == 'Online')}",
        "DISKS": "disks",
        "RUNNING": "instances",
        "POOL FREE": lambda one: _of(one.pool_free, one.pool_total),
        "MEMORY FREE": lambda one: _of(one.memory_free, one.memory_total),
    }
    return "\n".join(aligned(members, columns))


def _of(free: float | None, total: float | None) -> str:
    return "" if free is None or total is None else f"{free:.1f} of {total:.1f} GB"
