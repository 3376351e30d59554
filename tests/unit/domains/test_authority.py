"""The ACME client against an authority that fails: each failure in words, and its request to be left alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from josepy.b64 import b64decode

from builderd.domains import authority
from builderd.domains.authority import AcmeAuthority, AcmeOptions
from builderd.previews.port import OrderFailed

ERROR = "urn:ietf:params:acme:error:"


class Failing(ThreadingHTTPServer):
    """Answers each request for an account in turn with (status, headers, body)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked = 0
        self.profiles: dict[str, str] = {}
        self.last: dict[str, Any] = {}


class Handler(BaseHTTPRequestHandler):
    server: Failing

    def do_GET(self) -> None:
        base = self.server.url
        self._send(
            200,
            {},
            {
                "newNonce": f"{base}/nonce",
                "newAccount": f"{base}/account",
                "newOrder": f"{base}/order",
                "meta": {"caaIdentities": ["CA.test"], "profiles": self.server.profiles},
            },
        )

    def do_HEAD(self) -> None:
        self._send(200, {}, None)

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.last = json.loads(b64decode(sent["payload"]) or b"{}")
        self.server.asked += 1
        self._send(*self.server.answers.pop(0))

    def _send(self, status: int, headers: dict[str, str], body: Any) -> None:
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Replay-Nonce": "bm9uY2U", "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Failing]:
    made = Failing()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


async def failure(server: Failing, *answers: tuple[int, dict[str, str], Any]) -> OrderFailed:
    server.answers = list(answers)
    made = AcmeAuthority(AcmeOptions(f"{server.url}/dir"))

    async def publish(token: str, answer: str) -> None:
        raise AssertionError("nothing is ordered")

    with pytest.raises(OrderFailed) as caught:
        await made.issue(made.new_account_key(), "shop.example.com", publish)
    return caught.value


def problem(kind: str, detail: str = "no") -> dict[str, str]:
    return {"type": f"{ERROR}{kind}", "detail": detail}


async def test_server_error_is_reported(server: Failing) -> None:
    failed = await failure(server, (500, {}, problem("serverInternal", "on fire\x00\n<b>")))
    assert failed.reason == "the authority refused the order: serverInternal: on fire  <b>"
    assert failed.wait is None


@pytest.mark.parametrize(("header", "wait"), [("7200", timedelta(hours=2)), ("", timedelta(hours=1))])
async def test_a_rate_limit_is_respected(server: Failing, header: str, wait: timedelta) -> None:
    sent = {"Retry-After": header} if header else {}
    failed = await failure(server, (429, sent, problem("rateLimited", "too many")))
    assert failed.wait == wait


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"type": 1}'])
async def test_invalid_answer_is_reported(server: Failing, body: bytes) -> None:
    failed = await failure(server, (502, {}, body))
    assert failed.reason.startswith("the authority ")


async def test_missing_answer_is_reported() -> None:
    made = AcmeAuthority(AcmeOptions("http://127.0.0.1:9/dir"))

    async def publish(token: str, answer: str) -> None:
        raise AssertionError("nothing is ordered")

    with pytest.raises(OrderFailed, match="does not answer"):
        await made.issue(made.new_account_key(), "shop.example.com", publish)
    assert await made.identities() == frozenset()
    assert await made.suggested_renewal("no certificate") is None


async def test_the_names_for_caa_records_are_those_of_the_directory(server: Failing) -> None:
    assert await AcmeAuthority(AcmeOptions(f"{server.url}/dir")).identities() == {"ca.test"}


@pytest.mark.parametrize(
    ("host", "profiles", "asked"),
    [
        ("203.0.113.5", {"classic": "", "shortlived": ""}, "shortlived"),
        ("203.0.113.5", {}, None),
        ("shop.example.com", {"shortlived": ""}, None),
    ],
)
async def test_addresses_are_ordered_with_the_short_lived_profile_where_there_is_one(
    server: Failing, host: str, profiles: dict[str, str], asked: str | None
) -> None:
    server.profiles = profiles
    account = (201, {"Location": f"{server.url}/account/1"}, {"status": "valid"})
    server.answers = [account, (403, {}, problem("unauthorized"))]
    made = AcmeAuthority(AcmeOptions(f"{server.url}/dir"))

    async def publish(token: str, answer: str) -> None:
        raise AssertionError("nothing is ordered")

    with pytest.raises(OrderFailed):
        await made.issue(made.new_account_key(), host, publish)
    assert server.last["identifiers"] == [{"type": "ip" if host[0] == "2" else "dns", "value": host}]
    assert server.last.get("profile") == asked


def test_a_wait_is_seconds_or_a_date_and_is_bounded() -> None:
    assert authority._pause("120") == timedelta(seconds=120)
    assert authority._pause(str(10**12)) == authority.MAX_PAUSE
    later = authority._pause(format_datetime(datetime.now(UTC) + timedelta(hours=2)))
    assert later is not None
    assert timedelta(hours=1) < later <= timedelta(hours=2)
    assert authority._pause("Thu, 01 Jan 1970 00:00:00 GMT") == timedelta(0)
    for text in (None, "", "soon", "-1", "9" * 400):
        assert authority._pause(text) in (None, authority.MAX_PAUSE)
