"""Report of a sandbox, from its instance and the service's own keys on it. Pure.

Keys: ``builder``, ``disk``, ``layer``, ``ip``, ``started``; ``stopping``, ``frozen``, ``thawed``; ``end``, written when
the end was first seen; ``removed``. Times are in seconds since 1970.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from builderd.adapters.engines.incus import guest
from builderd.adapters.engines.incus.client import Json
from builderd.adapters.engines.incus.errors import IncusError, IncusNotFound, PoolFull, member_away
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.volumes import member_of, own_of
from builderd.domain.ids import BuilderId, SandboxId
from builderd.domain.sandboxes import EndCause, SandboxEnd, SandboxReport, SandboxState

PREFIX = "s-"
#: Clocks of members may differ by so many seconds.
_CLOCKS = 1.0
#: Codes of an app that was ended by a machine's shutdown: TERM, then KILL.
SHUTDOWN_CODES = (143, 137)
_ALIVE = {
    "Running": SandboxState.RUNNING,
    "Ready": SandboxState.RUNNING,
    "Thawed": SandboxState.RUNNING,
    "Stopping": SandboxState.RUNNING,
    "Frozen": SandboxState.FROZEN,
    "Freezing": SandboxState.FROZEN,
}


@dataclass(frozen=True, slots=True)
class Exit:
    """Record that the instance's first program wrote at its end."""

    code: int
    oom: bool
    at: float

    @classmethod
    def parse(cls, text: str) -> Exit:
        code, killed, at = text.split()
        return cls(int(code), killed != "0", float(at))


def name_of(sandbox: SandboxId) -> str:
    return f"{PREFIX}{sandbox}"


def sandbox_of(name: str) -> SandboxId:
    return SandboxId(name.removeprefix(PREFIX))


def is_sandbox(found: Json) -> bool:
    """Return True for an instance of a sandbox that was not removed."""
    return str(found["name"]).startswith(PREFIX) and "removed" not in own_of(found)


def missing_report(sandbox: SandboxId) -> SandboxReport:
    return SandboxReport(id=sandbox, builder_id=None, state=SandboxState.ABSENT)


def lost_report(found: Json) -> SandboxReport:
    """Return the report of a sandbox whose member is given up: it ended with its machine."""
    end = SandboxEnd(EndCause.HOST_RESTARTED, None, None)
    return SandboxReport(sandbox_of(found["name"]), None, SandboxState.EXITED, end=end)


def stopped_report(found: Json) -> SandboxReport:
    """Return the report of a sandbox that is stopped once its member returns: for its builder it is over."""
    end = SandboxEnd(EndCause.STOPPED, None, None)
    return SandboxReport(sandbox_of(found["name"]), None, SandboxState.EXITED, end=end)


def state_of(found: Json) -> SandboxState:
    """Return the state of an instance that got its order. Raises ``MemberAway``."""
    if found["status"] == "Error":
        raise member_away(str(found.get("location")))
    return SandboxState.EXITED if "end" in own_of(found) else _ALIVE.get(found["status"], SandboxState.EXITED)


def partial_report(found: Json) -> SandboxReport:
    """Return the report of an instance that never got its order."""
    return SandboxReport(sandbox_of(found["name"]), BuilderId(own_of(found)["builder"]), SandboxState.PARTIAL)


def make_report(found: Json) -> SandboxReport:
    """Return the report; of an ended one, its ``end`` was written before."""
    own, sandbox, state = own_of(found), sandbox_of(found["name"]), state_of(found)
    builder = BuilderId(own["builder"])
    started, frozen, thawed = (_moment(own.get(key)) for key in ("started", "frozen", "thawed"))
    if state is not SandboxState.EXITED:
        return SandboxReport(sandbox, builder, state, own["ip"], started, None, frozen, thawed, member=member_of(found))
    end = json.loads(own["end"])
    read = SandboxEnd(EndCause(end["cause"]), end["code"], _moment(end["at"]))
    oom = bool(end.get("oom"))
    return SandboxReport(sandbox, builder, state, None, started, read, frozen, thawed, oom, member_of(found))


def was_stopped(own: Mapping[str, str], exit_: Exit | None) -> bool:
    """Return True if it ended since the service stopped it: what else befell its machine says nothing then."""
    return "stopping" in own and (exit_ is None or exit_.at >= float(own["stopping"]) - _CLOCKS)


def make_end(own: Mapping[str, str], exit_: Exit | None, *, host_restarted: bool, now: float) -> str:
    """Return the value of the key ``end``. A forced end leaves no exit record."""
    started = float(own["started"])
    if exit_ is None:
        cause = EndCause.HOST_RESTARTED if host_restarted else EndCause.MONITOR_LOST
        cause = EndCause.STOPPED if was_stopped(own, exit_) else cause
        return _end(cause, None, max(now, started))
    at = max(exit_.at, started)
    if was_stopped(own, exit_):
        return _end(EndCause.STOPPED, exit_.code, at)
    if host_restarted and exit_.code in SHUTDOWN_CODES:
        return _end(EndCause.HOST_RESTARTED, None, at)
    # An app may survive the death of one of its processes and exit normally later.
    if exit_.oom and exit_.code:
        return _end(EndCause.OUT_OF_MEMORY, exit_.code, at, oom=True)
    return _end(EndCause.EXITED, exit_.code, at, oom=exit_.oom)


def _end(cause: EndCause, code: int | None, at: float, *, oom: bool = False) -> str:
    return json.dumps({"cause": cause.value, "code": code, "at": f"{at:.6f}", "oom": oom})


def _moment(seconds: str | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(float(seconds), UTC)


#: Seconds within which Incus notes that a stopped instance was stopped and not cut off with its machine.
_NOTE_SECONDS = 3.0
#: Attempts to read a file of an instance whose root is being unmounted.
_BUSY_TRIES, _BUSY_SECONDS = 50, 0.1


class Ends:
    def __init__(self, instances: Instances) -> None:
        self._client = instances.client
        self._instances = instances
        #: Ends that are being found out, by instance.
        self._writing: dict[str, asyncio.Future[str]] = {}

    async def write(self, found: Json) -> Json:
        """Find out how an instance ended, and write it on it, so that every later report says the same.

        Return the instance with it. Calls at the same time share one: a stop, and the event that it causes.
        """
        name = found["name"]
        if (writing := self._writing.get(name)) is None:
            writing = self._writing[name] = asyncio.ensure_future(self._write(found))
            writing.add_done_callback(lambda done: self._forget(name, done))
        end = {f"{OWN}end": await asyncio.shield(writing)}
        return {**found, "config": found["config"] | end}

    def _forget(self, name: str, done: asyncio.Future[str]) -> None:
        self._writing.pop(name, None)
        if not done.cancelled():
            done.exception()  # all who wait for it may have been cancelled

    async def _write(self, found: Json) -> str:
        own, name = own_of(found), found["name"]
        recorded = await self.read(name, guest.EXIT_RECORD)
        exit_ = Exit.parse(recorded) if recorded else None
        restarted = False
        if not was_stopped(own, exit_):
            restarted = exit_ is None and await self.read(name, guest.RESTARTED) is not None
            if not restarted and (exit_ is None or exit_.code in SHUTDOWN_CODES):
                restarted = await self._was_cut_off(name)
        end = make_end(own, exit_, host_restarted=restarted, now=time.time())
        try:
            await self._instances.mark(name, {"end": end})
        except PoolFull:
            # An earlier service may have written its own meanwhile.
            written: str | None = own_of(await self._client.get(f"/instances/{name}")).get("end")
            if written is None:
                raise
            return written
        return end

    async def read(self, name: str, path: str) -> str | None:
        """Return the text of a file of an instance, None when there is none."""
        for attempt in range(_BUSY_TRIES):
            try:
                content = await self._client.file(name, path)
            except IncusNotFound:
                return None
            except IncusError:
                # Its root is being unmounted after its end.
                if attempt == _BUSY_TRIES - 1:
                    raise
                await asyncio.sleep(_BUSY_SECONDS)
            else:
                return content.decode() if isinstance(content, bytes) else None
        return None

    async def _was_cut_off(self, name: str) -> bool:
        """Return True if Incus takes the instance for running: its machine restarted, or was shut down, under it."""
        deadline = time.monotonic() + _NOTE_SECONDS
        while True:
            found = await self._instances.find(name)
            if found is None or found["config"].get("volatile.last_state.power") != "RUNNING":
                return False
            if time.monotonic() > deadline:
                return True
            await asyncio.sleep(0.1)
