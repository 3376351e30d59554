"""A standby's proxy."""

from __future__ import annotations

from collections.abc import Sequence

from builderd.adapters.previews.haproxy.forwarder import Target
from builderd.domain.errors import EngineUnavailable


class FakeForwarder:
    """Keeps where the ports lead, as ``adapters.previews.haproxy.forwarder.Forwarder``."""

    def __init__(self) -> None:
        self.led: list[Target] = []
        self.listed: dict[str, str] = {}
        #: The times up to which the list may be used.
        self.allowed: list[int] = []
        #: Calls that end visits.
        self.ended = 0
        #: The proxy died before this command.
        self.refuses = ""
        #: The next look starts it anew; how often it was started.
        self.starts_anew, self.starts = False, 1
        self.serves_list = True
        #: The times up to which visits may be led directly, with the hosts of the list then.
        self.direct: list[tuple[int, frozenset[str]]] = []
        self.puts = 0
        #: Those of the cluster, and how many were put when the proxy was retired.
        self.hops: list[dict[str, str]] = []
        self.hops_at_end: list[int] = []

    async def put_list(self, routes: dict[str, str]) -> None:
        self._answer("put_list")
        self.listed = dict(routes)
        self.puts += 1

    async def allow_list(self, until: int) -> None:
        self._answer("allow_list")
        self.allowed.append(until)

    async def allow_direct(self, until: int) -> None:
        self._answer("allow_direct")
        self.direct.append((until, frozenset(self.listed)))

    async def counts(self, commands: Sequence[str]) -> list[str]:
        self._answer("counts")
        return [""] * len(commands)

    def _answer(self, command: str) -> None:
        if command == self.refuses:
            raise EngineUnavailable("The standby's proxy does not work.")

    async def end_visits(self) -> None:
        self.ended += 1

    async def retire(self, *, ends_visits: bool = False) -> None:
        self.ended += ends_visits
        self.hops_at_end.append(len(self.hops))

    async def run(self, options: object) -> bool:
        started, self.starts_anew = self.starts_anew, False
        if started:
            self.listed, self.starts = {}, self.starts + 1
        return started

    async def lead(self, target: Target) -> None:
        self.led.append(target)
