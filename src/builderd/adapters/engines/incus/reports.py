"""Report of a sandbox, from its instance and the service's own keys on it. Pure.

Keys: ``builder``, ``disk``, ``layer``, ``ip``, ``started``; ``stopping``, ``frozen``, ``thawed``; ``end``, written when
the end was first seen; ``removed``. Times are in seconds since 1970.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from weakref import WeakValueDictionary

from websockets.exceptions import ConnectionClosed

from builderd.adapters.engines.incus import client, image
from builderd.adapters.engines.incus.client import IncusClient, IncusError, IncusNotFound, Json, member_away
from builderd.adapters.engines.incus.instance import OWN
from builderd.adapters.engines.incus.instances import Instances
from builderd.adapters.engines.incus.volumes import member_of, own_of
from builderd.domain.errors import BuilderdError
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


def ended_report(found: Json, cause: EndCause) -> SandboxReport:
    """Return the report of a sandbox on a member that is away, and that is over for its builder."""
    return SandboxReport(sandbox_of(found["name"]), None, SandboxState.EXITED, end=SandboxEnd(cause, None, None))


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
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def write(self, found: Json) -> Json:
        """Find out how an instance ended, and write it on it, so that every later report says the same.

        Return the instance with it.
        """
        name = found["name"]
        async with self._locks.setdefault(name, asyncio.Lock()):
            # A stop, and the event that it causes, ask at the same time.
            end = own_of(await self._instances.find(name) or found).get("end")
            if end is None:
                end = await self._make_end(found)
                await self._instances.mark(name, {"end": end})
        return {**found, "config": found["config"] | {f"{OWN}end": end}}

    async def _make_end(self, found: Json) -> str:
        own, name = own_of(found), found["name"]
        recorded = await self.read(name, image.EXIT_RECORD)
        exit_ = Exit.parse(recorded) if recorded else None
        restarted = False
        if not was_stopped(own, exit_):
            restarted = exit_ is None and await self.read(name, image.RESTARTED) is not None
            if not restarted and (exit_ is None or exit_.code in SHUTDOWN_CODES):
                restarted = await self._was_cut_off(name)
        return make_end(own, exit_, host_restarted=restarted, now=time.time())

    async def read(self, name: str, path: str) -> str | None:
        """Return the text of a file of an instance, None when there is none."""
        for attempt in range(_BUSY_TRIES):
            try:
                content = await self._client.file(name, path)
            except IncusError as error:
                if isinstance(error, IncusNotFound):
                    return None
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
        while time.monotonic() < deadline:
            found = await self._instances.find(name)
            if found is None or found["config"].get("volatile.last_state.power") != "RUNNING":
                return False
            await asyncio.sleep(0.1)
        return True


log = logging.getLogger(__name__)

_ENDED = ("instance-shutdown", "instance-stopped")
_RETRY_SECONDS = 1.0


class Events:
    """One connection for all subscribers. ``missed`` returns the sandboxes that ended while none was open."""

    def __init__(self, client: IncusClient, missed: Callable[[], Awaitable[list[SandboxId]]]) -> None:
        self._client = client
        self._missed = missed
        self._subscribers: set[asyncio.Queue[SandboxId]] = set()
        self._following: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    async def open(self) -> None:
        """Connect. Idempotent."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._connected.wait(), 5)

    async def close(self) -> None:
        if self._following:
            self._following.cancel()
            await asyncio.wait({self._following})
            self._following = None

    @contextmanager
    def subscribed(self) -> Iterator[asyncio.Queue[SandboxId]]:
        """Yield a queue that gets the sandboxes that end while the context lasts."""
        queue: asyncio.Queue[SandboxId] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    async def _follow(self) -> None:
        while True:
            try:
                async with await self._client.open_websocket(
                    "/events", client.PROBE_SECONDS, type="lifecycle"
                ) as connection:
                    self._connected.set()
                    for sandbox in await self._missed():
                        self._publish(sandbox)
                    async for message in connection:
                        event = json.loads(message).get("metadata") or {}
                        name = str(event.get("source", "")).partition("?")[0].rpartition("/")[2]
                        if event.get("action") in _ENDED and name.startswith(PREFIX):
                            self._publish(sandbox_of(name))
            except (BuilderdError, ConnectionClosed) as error:
                log.warning("event stream of Incus lost retry_seconds=%.0f error=%s", _RETRY_SECONDS, error)
            await asyncio.sleep(_RETRY_SECONDS)

    def _publish(self, sandbox: SandboxId) -> None:
        for queue in self._subscribers:
            queue.put_nowait(sandbox)
