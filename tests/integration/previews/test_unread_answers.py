"""Visitors who read nothing: what the kernel takes for them of an app's answers."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest
from tests.previews.proxy import App, Proxy
from tests.previews.visitor import PATIENCE
from tests.send_queues import unacknowledged

from builderd.previews.haproxy.config import SEND_BUFFER

pytestmark = pytest.mark.haproxy

#: Looks in a row that are alike: the kernel has taken what it takes.
ALIKE = 10


def test_unread_answers_take_a_bounded_part_of_the_kernels_memory(proxy: Proxy, app: App) -> None:
    host = proxy.open(app)
    request = f"GET /flood HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    looks: list[list[int]] = []
    with ExitStack() as stack:
        for _ in range(4):
            attacker = stack.enter_context(socket.socket())
            # A large window: what the visitor's kernel takes lets the sender's grow.
            attacker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            attacker.connect(("127.0.0.1", proxy.options.port))
            attacker.sendall(request)
        deadline = time.monotonic() + PATIENCE
        while len(looks) < ALIKE or len(looks[-1]) < 4 or any(look != looks[-1] for look in looks[-ALIKE:]):
            assert time.monotonic() < deadline, looks[-ALIKE:]
            time.sleep(0.1)
            looks.append(unacknowledged(proxy.options.port))
        assert proxy.visitor.get(host).status == 200
    assert 0 < max(looks[-1]) <= 2 * SEND_BUFFER + (64 << 10)
