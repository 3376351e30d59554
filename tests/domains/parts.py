"""A name server and a certificate authority of the test's own, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.update
import pytest
from tests.previews.certificates import make_pem
from tests.previews.proxy import free_port

PATIENCE = 20.0
PEBBLE = shutil.which("pebble") or "/usr/bin/pebble"


class DnsServer:
    """Answers with ``records`` (name, type → texts); other names do not exist. ``silent`` names get no answer."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.silent: set[str] = set()
        #: Keys of updates by name, and the zone that they may change.
        self.keys: dict[dns.name.Name, dns.tsig.Key] = {}
        self.zone = ""
        self.failing: set[str] = set()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def point(self, host: str, *addresses: str) -> None:
        self.records[host, "A"] = [one for one in addresses if ":" not in one]
        self.records[host, "AAAA"] = [one for one in addresses if ":" in one]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(PATIENCE)

    def _serve(self) -> None:
        while True:
            try:
                data, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            answer = self._reply(data)
            if answer is not None:
                self._socket.sendto(answer.to_wire(), peer)

    def _reply(self, data: bytes) -> dns.message.Message | None:
        try:
            query = dns.message.from_wire(data, keyring=self.keys)
        except dns.exception.DNSException:
            refused = dns.message.make_response(dns.message.from_wire(data, keyring=False))
            refused.set_rcode(dns.rcode.NOTAUTH)
            return refused
        return self._changed(query) if isinstance(query, dns.update.UpdateMessage) else self._answer(query)

    def _changed(self, update: dns.update.UpdateMessage) -> dns.message.Message:
        """Carry out an update that adds values, or removes some."""
        reply = dns.message.make_response(update)
        if not update.had_tsig or str(update.zone[0].name).rstrip(".") != self.zone:
            reply.set_rcode(dns.rcode.REFUSED)
            return reply
        for change in update.update:
            values = self.records.setdefault((str(change.name).rstrip("."), dns.rdatatype.to_text(change.rdtype)), [])
            for value in map(str, change):
                if change.deleting is None:
                    values.append(value)
                elif value in values:
                    values.remove(value)
        return reply

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        asked = query.question[0]
        name, kind = str(asked.name).rstrip(".").lower(), dns.rdatatype.to_text(asked.rdtype)
        if name in self.silent:
            return None
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA | dns.flags.AA
        if name in self.failing:
            reply.set_rcode(dns.rcode.SERVFAIL)
            return reply
        target = name
        if cname := self.records.get((name, "CNAME")):
            target = cname[0]
            reply.answer.append(dns.rrset.from_text(asked.name, 1, "IN", "CNAME", f"{target}."))
        texts = self.records.get((target, kind), [])
        if texts and kind != "CNAME":
            reply.answer.append(dns.rrset.from_text(f"{target}.", 1, "IN", kind, *texts))
        if not any(known == target for known, _ in self.records):
            reply.set_rcode(dns.rcode.NXDOMAIN)
        return reply


class Pebble:
    """Debian's test authority, which verifies names through the test's name server at ``http_port``."""

    def __init__(self, name_server: str, http_port: int, **options: object) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="pebble-"))
        pem = make_pem("localhost")
        (self._place / "both.pem").write_text(pem)
        self.roots = self._place / "roots.pem"
        self.roots.write_text(pem[: pem.index("-----BEGIN PRIVATE")])
        self._settings = {"httpPort": http_port, **options}
        # A port that was free may be taken by the time that it is used.
        while not self._start(name_server):
            pass

    def _start(self, name_server: str) -> bool:
        """Start it; return False if it ended at once."""
        port, management, tls_port = free_port(), free_port(), free_port()
        self.directory = f"https://localhost:{port}/dir"
        settings = {
            "listenAddress": f"127.0.0.1:{port}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(self._place / "both.pem"),
            "privateKey": str(self._place / "both.pem"),
            "tlsPort": tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
            "retryAfter": {"authz": 1, "order": 1},
            "certificateValidityPeriod": 7_776_000,
            **self._settings,
        }
        (self._place / "config.json").write_text(json.dumps({"pebble": settings}))
        self._process = subprocess.Popen(
            (PEBBLE, "-config", str(self._place / "config.json"), "-dnsserver", name_server),
            env={"PATH": os.defpath, "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self._answers()

    def _answers(self) -> bool:
        context, deadline = ssl.create_default_context(cafile=str(self.roots)), time.monotonic() + PATIENCE
        while self._process.poll() is None:
            try:
                with urllib.request.urlopen(self.directory, context=context, timeout=5):
                    return True
            except (OSError, urllib.error.URLError):
                assert time.monotonic() < deadline, "pebble did not start in time"
                time.sleep(0.05)
        return False

    def stop(self) -> None:
        """End the authority: nothing answers any more. Idempotent."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._place)


@pytest.fixture(scope="module")
def name_server() -> Iterator[DnsServer]:
    server = DnsServer()
    yield server
    server.close()
