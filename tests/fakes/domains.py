"""Name servers, a challenge probe and a certificate authority in memory, with scripted answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from builderd.previews.port import Certificate, DnsRecords, OrderFailed, ProbeReply, Publish

LIFE = timedelta(days=90)
TOKEN, ANSWER = "token", "token.thumbprint"


@dataclass
class FakeNameServers:
    """``records_of`` has the records by host; ``texts`` the TXT values by name."""

    records_of: dict[str, DnsRecords] = field(default_factory=dict)
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def point(self, host: str, *addresses: str) -> None:
        self.records_of[host] = DnsRecords(addresses)

    async def records(self, host: str, text_name: str) -> DnsRecords:
        found = self.records_of.get(host, DnsRecords())
        return DnsRecords(found.addresses, found.alias, found.caa, self.texts.get(text_name, ()), found.error)


@dataclass
class FakeProbe:
    """Probe that finds the preview's own answers, except at addresses with a ``reply`` of their own."""

    challenges: dict[str, str]
    replies: dict[str, ProbeReply] = field(default_factory=dict)
    asked: list[tuple[str, int, str]] = field(default_factory=list)

    async def get(self, address: str, port: int, host: str, path: str) -> ProbeReply:
        self.asked.append((address, port, host))
        if address in self.replies:
            return self.replies[address]
        answer = self.challenges.get(path.rpartition("/")[2])
        return ProbeReply(404) if answer is None else ProbeReply(200, answer)


@dataclass
class FakeAuthority:
    """Authority that issues at once. ``failures`` are raised in turn first; ``suggested``: time of a renewal."""

    now: Callable[[], datetime]
    failures: list[OrderFailed] = field(default_factory=list)
    suggested: datetime | None = None
    names: frozenset[str] = frozenset({"ca.test"})
    issued: list[str] = field(default_factory=list)
    accounts: set[bytes] = field(default_factory=set)

    def new_account_key(self) -> bytes:
        return f"account key {len(self.accounts)}".encode()

    async def issue(self, account_key: bytes, host: str, publish: Publish) -> Certificate:
        self.accounts.add(account_key)
        await publish(TOKEN, ANSWER)
        if self.failures:
            raise self.failures.pop(0)
        self.issued.append(host)
        begin = self.now()
        pem = f"certificate {len(self.issued)} of {host}\n"
        return Certificate(pem, begin, begin + LIFE, self.suggested)

    async def issue_by_dns(self, account_key: bytes, names: Sequence[str], publish: Publish) -> Certificate:
        for name in names:
            await publish(f"_acme-challenge.{name.removeprefix('*.')}", ANSWER)
        if self.failures:
            raise self.failures.pop(0)
        told = " and ".join(names)
        self.issued.append(told)
        begin = self.now()
        return Certificate(f"certificate {len(self.issued)} of {told}\n", begin, begin + LIFE, self.suggested)

    async def suggested_renewal(self, pem: str) -> datetime | None:
        return self.suggested

    async def identities(self) -> frozenset[str]:
        return self.names


@dataclass
class FakeDnsUpdates:
    """Updates of the records that ``names`` answers with."""

    names: FakeNameServers

    async def add_text(self, name: str, value: str) -> None:
        self.names.texts[name] = (*self.names.texts.get(name, ()), value)

    async def remove_text(self, name: str, value: str) -> None:
        self.names.texts[name] = tuple(one for one in self.names.texts.get(name, ()) if one != value)
