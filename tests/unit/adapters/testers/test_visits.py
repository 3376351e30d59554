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


async def test_nobody_there_is_told_of_the_app() -> None:
    visitor = Visitor()
    assert (await visitor.visit(NOBODY, "/", 5)).fault == "the connection was refused"
    await visitor.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
async def test_what_the_machine_could_not_send_is_not(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Exhausted(socket.socket):
        def connect(self, _address: object) -> None:
            raise OSError(number, "exhausted")

    visitor = Visitor()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Exhausted)
        with pytest.raises(MachineFault):
            await visitor.visit(NOBODY, "/", 5)
    await visitor.close()
