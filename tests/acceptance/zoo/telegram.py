"""A stub of Telegram's Bot API on a host of its own: a bot polls it, as it would poll the real one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from threading import Condition
from typing import Any
from urllib.parse import parse_qsl

from tests.acceptance.zoo.app import Visit
from tests.outside import outside

PORT = 8090
BOT = {"id": 7, "is_bot": True, "first_name": "Gnu", "username": "gnu_bot"}
PERSON = {"id": 8, "is_bot": False, "first_name": "Ada"}
#: Seconds for which a call of getUpdates waits, at most.
POLL = 5.0


class TelegramStub:
    """The messages that people sent to the bot, and those that it sent to them."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._updates: list[dict[str, Any]] = []
        self._counted = 0
        self.sent: list[str] = []

    @contextmanager
    def serving(self) -> Iterator[Mapping[str, Any]]:
        """Serve the API on an address for documentation, which sandboxes may reach; yields the bot's environment."""
        address = f"198.51.100.{10 + os.getpid() % 200}"
        with outside(address) as there, there.serving(self._handler(), PORT):
            # No token of Telegram's: the stub takes any, and the review stops what looks like one.
            yield {"env": {"BOT_API": f"http://{address}:{PORT}/bot", "BOT_NAME": "7:stub"}}

    def say(self, text: str) -> None:
        with self._changed:
            number = len(self._updates) + 1
            chat = {"id": PERSON["id"], "type": "private", "first_name": "Ada"}
            message = {"message_id": number, "date": int(time.time()), "chat": chat, "from": PERSON, "text": text}
            self._updates.append({"update_id": number, "message": message})
            self._changed.notify_all()

    def answered(self, visit: Visit) -> None:
        """Prove that the bot answers a new message."""
        text = f"hello {time.monotonic_ns()}"
        self.say(text)
        deadline = time.monotonic() + 60
        while not any(text in one for one in self.sent):
            assert time.monotonic() < deadline, f"no answer to {text!r}: {visit.lines()[-20:]}"
            time.sleep(0.1)

    def remember(self, visit: Visit) -> None:
        """Have the bot answer, and note the number that it counts in a file."""
        self.answered(visit)
        self._counted = self._last_count()

    def counts_on(self, visit: Visit) -> None:
        """Prove that the bot goes on counting where it was."""
        self.answered(visit)
        assert self._last_count() > self._counted, self.sent

    def _last_count(self) -> int:
        return int(self.sent[-1].rpartition(" ")[2])

    def _updates_from(self, offset: int, seconds: float) -> list[dict[str, Any]]:
        with self._changed:
            self._changed.wait_for(lambda: len(self._updates) >= max(offset, 1), min(seconds, POLL))
            return self._updates[max(offset, 1) - 1 :]

    def _call(self, method: str, given: Mapping[str, Any]) -> Any:
        match method:
            case "getme":
                return BOT
            case "getupdates":
                return self._updates_from(int(given.get("offset") or 0), float(given.get("timeout") or 0))
            case "sendmessage":
                self.sent.append(str(given["text"]))
                chat = {"id": PERSON["id"], "type": "private"}
                return {"message_id": len(self.sent), "date": 0, "chat": chat, "from": BOT, "text": given["text"]}
        return True

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                given = _fields(body, self.headers.get_content_type())
                result = stub._call(self.path.rpartition("/")[2].lower(), given)
                body = json.dumps({"ok": True, "result": result}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                with suppress(ConnectionError):  # a bot that ends does not wait for its poll
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                return

        return Handler


def _fields(body: bytes, kind: str) -> Mapping[str, Any]:
    """Return the fields of a form or of JSON."""
    if "json" in kind:
        found: Mapping[str, Any] = json.loads(body or b"{}")
        return found
    return dict(parse_qsl(body.decode()))
