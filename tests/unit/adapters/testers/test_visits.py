"""A request that could not be sent is no answer of the app's."""

from __future__ import annotations

import errno
import socket

import pytest

from builderd.adapters.testers.visits import Visitor
from builderd.domain.errors import MachineFault
from builderd.domain.previews import Address
from builderd.ports.testers import Target

NOBODY = Target(Address("127.0.0.1", 1), "http://app.localhost")


async def test_refused_connection_is_the_apps_failure() -> None:
    visitor = Visitor()
    assert (await visitor.visit(NOBODY, "/", 5)).fault == "the connection was refused"
    await visitor.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
async def test_unsendable_request_is_a_machine_fault(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Exhausted(socket.socket):
        def connect(self, _address: object) -> None:
            raise OSError(number, "exhausted")

    visitor = Visitor()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Exhausted)
        with pytest.raises(MachineFault):
            await visitor.visit(NOBODY, "/", 5)
    await visitor.close()
