"""Preflight checks of the engine on Incus. Changes nothing."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence

from builderd.adapters.engines.incus.administration import Administration, MemberState
from builderd.adapters.engines.incus.client import IncusClient
from builderd.adapters.engines.incus.cluster import Cluster
from builderd.adapters.engines.incus.errors import IncusNotFound
from builderd.adapters.engines.incus.network import network_config
from builderd.adapters.engines.incus.options import IncusOptions
from builderd.domain.errors import BuilderdError, EngineUnavailable
from builderd.domain.preflight import SEARCH_PATH, PreflightCheck

#: The first release with all that the engine uses.
LEAST_VERSION = (6, 0)
#: A member's space is tight when less than this part of its pool is free.
TIGHT = 0.1
#: (program, Debian package, consequence of its lack)
PROGRAMS = (
    ("s6-log", "s6", "the apps' logs cannot be kept"),
    ("mksquashfs", "squashfs-tools", "the image of the instances cannot be made"),
    ("mmdebstrap", "mmdebstrap", "the base root file system cannot be made"),
)
_NO_INCUS = (
    "no app can be started: apt-get install incus-base incus-client, then builderd cluster init, or set incus.socket"
)


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
        return [_version(server), *await _members(client, options), *tried]
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


async def _members(client: IncusClient, options: IncusOptions) -> Sequence[PreflightCheck]:
    """Return a check of each member, or of the only server."""
    cluster = Cluster(client, options)
    await cluster.look()
    if not cluster.clustered:
        return [PreflightCheck("members", True, "no cluster: one server", "", False)]
    administration = Administration(options)
    try:
        return [_member(one, await _lacks(client, options, one)) for one in await administration.members()]
    finally:
        await administration.close()


def _member(member: MemberState, lacks: str) -> PreflightCheck:
    name = f"member {member.name}"
    if member.pool_free is None or member.pool_total is None:
        cost = "apps whose disk lies there do not run: see incus cluster list"
        return PreflightCheck(name, False, f"{member.address}: {member.status}", cost, False)
    detail = (
        f"{member.address}: {member.status}{', evacuating' if member.evacuating else ''}, {member.disks} disks, "
        f"pool {member.pool_free:.1f} of {member.pool_total:.1f} GB free"
    )
    if lacks:
        return PreflightCheck(name, False, f"{detail}; {lacks}", "apps placed there do not start", False)
    tight = member.pool_free < TIGHT * member.pool_total
    return PreflightCheck(name, not tight, detail, "new disks there may not fit: enlarge its pool", False)


async def _lacks(client: IncusClient, options: IncusOptions, member: MemberState) -> str:
    """Return in words which part is not ready on a member that answers, "" where all are."""
    if member.pool_free is None:
        return ""
    faults = []
    for kind, path in (("pool", f"/storage-pools/{options.pool}"), ("network", f"/networks/{options.network}")):
        try:
            found = await client.get(path, target=member.name)
        except IncusNotFound:
            # The network is made by the service.
            continue
        except EngineUnavailable:
            faults.append(f"{kind} not to be read: the member does not answer")
            continue
        if found["status"] not in ("Created", "Available"):
            faults.append(f"{kind} {found['status'].lower()}")
    return ", ".join(faults)


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
