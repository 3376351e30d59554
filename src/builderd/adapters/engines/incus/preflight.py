"""Preflight checks of the engine on Incus. Changes nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence

from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.cluster import Cluster
from builderd.adapters.engines.incus.errors import IncusNotFound
from builderd.adapters.engines.incus.network import network_config
from builderd.adapters.engines.incus.options import IncusOptions
from builderd.domain.errors import BuilderdError
from builderd.domain.preflight import SEARCH_PATH, PreflightCheck

#: The first release with all that the engine uses.
LEAST_VERSION = (6, 0)
#: (program, Debian package, consequence of its lack)
PROGRAMS = (
    ("s6-log", "s6", "the apps' logs cannot be kept"),
    ("mksquashfs", "squashfs-tools", "the image of the instances cannot be made"),
    ("mmdebstrap", "mmdebstrap", "the base root file system cannot be made"),
)
_NO_INCUS = "no app can be started: apt-get install incus-base incus-client, then incus admin init; or set incus.socket"


def run_checks(options: IncusOptions) -> Sequence[PreflightCheck]:
    """Run all checks."""
    programs = [
        PreflightCheck(
            name,
            (path := shutil.which(name, path=SEARCH_PATH)) is not None,
            path or "not installed",
            f"{cost}: apt-get install {package}",
            True,
        )
        for name, package, cost in PROGRAMS
    ]
    return [*programs, *asyncio.run(_ask(options))]


async def _ask(options: IncusOptions) -> Sequence[PreflightCheck]:
    try:
        client = IncusClient(options)
    except BuilderdError as error:
        return [PreflightCheck("Incus", False, error.message, _NO_INCUS, True)]
    try:
        try:
            server = await client.get("")
            await Cluster(client, options).look()
        except BuilderdError as error:
            return [PreflightCheck("Incus", False, error.message, _NO_INCUS, True)]
        tried = [await _tried(check, client, options) for check in (_pool, _network, _access_list)]
        return [_version(server), await _members(client, options), *tried]
    finally:
        await client.close()


Check = Callable[[IncusClient, IncusOptions], Awaitable[PreflightCheck]]


async def _tried(check: Check, client: IncusClient, options: IncusOptions) -> PreflightCheck:
    try:
        return await check(client, options)
    except BuilderdError as error:
        return PreflightCheck(check.__name__.strip("_"), False, error.message, "no app can be started", True)


def _version(server: dict[str, dict[str, str]]) -> PreflightCheck:
    text = server["environment"]["server_version"]
    number = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    cost = "calls that the engine makes may be missing: use Debian's 6.0 or later"
    return PreflightCheck("Incus", number >= LEAST_VERSION, f"version {text}", cost, True)


async def _members(client: IncusClient, options: IncusOptions) -> PreflightCheck:
    cluster = Cluster(client, options)
    await cluster.look()
    members = await cluster.members()
    away = [member.name for member in members if not member.online]
    detail = f"{len(members)} members, {', '.join(away)} away" if away else f"{len(members)} online"
    cost = "apps whose disk lies there do not run: see incus cluster list"
    return PreflightCheck("members", not away, detail if cluster.clustered else "no cluster: one server", cost, False)


async def _pool(client: IncusClient, options: IncusOptions) -> PreflightCheck:
    await Cluster(client, options).ensure_pool()
    return PreflightCheck("storage pool", True, options.pool, "there is nowhere to keep disks", True)


async def _network(client: IncusClient, options: IncusOptions) -> PreflightCheck:
    cost = "the service makes it when it starts; another network of its name or subnet is in its way"
    try:
        found = await client.get(f"/networks/{options.network}")
    except IncusNotFound:
        return PreflightCheck("network", True, f"{options.network}: not made yet", cost, False)
    wanted = network_config(options)
    differing = sorted(key for key, value in wanted.items() if found["config"].get(key) != value)
    detail = (
        f"{options.network} {options.subnet}" if not differing else f"{options.network} differs: {', '.join(differing)}"
    )
    return PreflightCheck("network", not differing, detail, cost, False)


async def _access_list(client: IncusClient, options: IncusOptions) -> PreflightCheck:
    cost = "apps could reach this machine's own network, so the service makes it before it starts one"
    try:
        found = await client.get(f"/network-acls/{options.network}")
    except IncusNotFound:
        return PreflightCheck("access list", True, f"{options.network}: not made yet", cost, False)
    rules = len(found["egress"] or ()) + len(found["ingress"] or ())
    return PreflightCheck("access list", rules > 0, f"{options.network}: {rules} rules", cost, False)
