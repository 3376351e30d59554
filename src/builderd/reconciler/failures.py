"""Messages for apps that did not start or exited, each with a way to fix it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from builderd.core.resources import Resources
from builderd.previews.model import Address
from builderd.sandboxes.model import EndCause, Listening, SandboxEnd, is_ipv6_only, is_loopback

#: Number of the last log lines in a failure's message.
SHOWN_LINES = 20
#: Number of an app's ports in a message.
SHOWN_PORTS = 10
#: Characters of each of them.
SHOWN_CHARACTERS = 500

#: Messages of libc, Node.js, Go and Java for an unreachable network and for a name that does not resolve; those of
#: Python's asyncio, anyio and trio leave out the first's text, or its number too.
_NO_NETWORK = re.compile(
    r"network is unreachable|no route to host|temporary failure in name resolution|name or service not known"
    r"|no address associated with hostname|could not resolve host|no such host|unknownhostexception"
    r"|\b(?:ENETUNREACH|EHOSTUNREACH|EAI_AGAIN|ENOTFOUND|EAI_NONAME)\b|failed to resolve|connection timed out"
    r"|\[Errno (?:-[235]|101|113)\]|all connection attempts failed|all attempts to connect to .{1,300} failed",
    re.IGNORECASE,
)


def describe_end(end: SandboxEnd, resources: Resources) -> str:
    """Describe how a sandbox ended: ``exited with code 1``, ``killed: out of memory, limit 1 GB``, …"""
    match end.cause:
        case EndCause.OUT_OF_MEMORY:
            return f"killed: out of memory, limit {resources.memory:g} GB"
        case EndCause.HOST_OUT_OF_MEMORY:
            return "killed: the machine was out of memory, the app within its limit"
        case EndCause.HOST_RESTARTED:
            return "host restarted"
        case EndCause.STOPPED:
            return "stopped"
        case EndCause.UNKNOWN:
            return "ended, exit code unknown: the engine has no record of it"
        case EndCause.MONITOR_LOST:
            return "ended, exit code unknown: its log monitor (conmon) was killed"
        case EndCause.EXITED:
            return f"exited with code {end.exit_code}" if end.exit_code is not None else "exited"


def exited_early(
    end: SandboxEnd, resources: Resources, port: int | None, lines: Sequence[str], hint: str = "", process: str = ""
) -> str:
    """Message for an app that ended before it listened, or for a worker (``port`` None) that ended at once.

    ``hint`` says what its lines show to be missing (``start_hint``), ``process`` is a further process.
    """
    what = f"The app ended before it listened on 0.0.0.0:{port}: {describe_end(end, resources)}."
    if port is None:
        who = f"process {process}" if process else "worker"
        what = f"The {who} ended before it was up: {describe_end(end, resources)}."
    advice = ""
    if hint:
        advice = f" {hint}"
    elif end.cause is EndCause.OUT_OF_MEMORY:
        advice = " Give it more with resources.memory."
    elif end.cause is EndCause.EXITED and end.exit_code == 0 and process:
        advice = " It must keep running: leave it out of the processes, or scale it to 0."
    elif end.cause is EndCause.EXITED and end.exit_code == 0:
        advice = ' It must keep running; for a command that runs to its end use "job_type": "one_time".'
    elif end.exit_code == 127:
        advice = (
            f" The shell did not find the command: check {'it' if process else 'the entrypoint'} and the requirements."
        )
    elif end.exit_code == 126:
        advice = ' The shell may not execute the command: mark its file as "executable", or name the interpreter.'
    return what + advice + quoted(lines)


def exited_too_often(end: SandboxEnd, resources: Resources, exits: int, lines: Sequence[str], hint: str = "") -> str:
    """Message for an app that is not restarted any more after ``exits`` exits in 10 minutes."""
    what = f"The app ended {exits} times within 10 minutes, at last so: {describe_end(end, resources)}."
    return what + (f" {hint}" if hint else "") + quoted(lines)


def not_listening(listening: Listening, port: int, seconds: float, lines: Sequence[str]) -> str:
    """Message for an app that runs but whose port is closed, or open on an unreachable address."""
    reached = {ip for ip, found in listening.sockets if found == port}
    ports = sorted({found for _, found in listening.sockets})
    shown = ", ".join([*map(str, ports[:SHOWN_PORTS]), *["…"] * (len(ports) > SHOWN_PORTS)])
    if reached and all(is_ipv6_only(ip) and not is_loopback(ip) for ip in reached):
        where = (
            f"The app listens on port {port} for IPv6 alone, and the preview asks by IPv4: "
            f"bind it to 0.0.0.0:{port}, or to [::]:{port} without IPV6_V6ONLY."
        )
    elif reached or (len(ports) == 1 and all(is_loopback(ip) for ip, _ in listening.sockets)):
        address = Address(*min(one for one in listening.sockets if not reached or one[1] == port))
        where = (
            f"The app listens on {address}, which cannot be reached from outside its sandbox: "
            f"bind it to 0.0.0.0:{port}."
        )
    elif ports:
        which = str(ports[0]) if len(ports) == 1 else "the one that visitors are to reach"
        where = (
            f"The app listens on port {shown}, not on 0.0.0.0:{port}: let it listen on the port in $PORT, "
            f'or set "port" to {which}.'
        )
    else:
        where = (
            f"The app runs, but did not listen on 0.0.0.0:{port} within {seconds:.0f} seconds. "
            'If it needs longer, set "start_timeout". A worker without a port? Deploy it with "job_type": "worker".'
        )
    return where + quoted(lines)


def listens_elsewhere(listening: Listening, port: int) -> bool:
    """Return True if the app listens, but on no socket that the preview can reach."""
    return bool(listening.sockets) and not listening.reachable(port)


def wants_network(lines: Sequence[str]) -> bool:
    """Return True if the last lines of an app without egress report an unreachable network."""
    return any(_NO_NETWORK.search(line) for line in lines)


def restart_note(end: SandboxEnd, resources: Resources, exits: int, limit: int) -> str:
    """Status reason of a restarted app: ``out of memory (limit 1 GB), restart 3 of 5``, ``host restarted``."""
    if end.cause is EndCause.HOST_RESTARTED:
        return describe_end(end, resources)
    if end.cause is EndCause.MONITOR_LOST:
        return "its log monitor (conmon) was killed; restarted"
    if end.cause is EndCause.HOST_OUT_OF_MEMORY:
        return f"{describe_end(end, resources)}; restarted"
    what = describe_end(end, resources)
    if end.cause is EndCause.OUT_OF_MEMORY:
        what = f"out of memory (limit {resources.memory:g} GB)"
    return f"{what}, restart {exits} of {limit}"


def quoted(lines: Sequence[str]) -> str:
    """Format the app's last lines as the end of a message."""
    last = lines[-SHOWN_LINES:]
    shown = [line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…" for line in last]
    return "\nIts last lines:\n" + "\n".join(shown) if shown else "\nIt wrote nothing."
