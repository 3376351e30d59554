"""Messages to the supervisor that started the service: the protocol of sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


class Supervisor:
    """Whoever has started the service and wants to hear from it; nobody, where it was started by hand.

    Its address is taken out of the environment: runtimes that find it there wait for their apps to be ready.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")

    def ready(self) -> None:
        """The service listens."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line of text in ``systemctl status``."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # An abstract address is written with an @ in the place of its first byte.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
                told.sendto(message.encode(), address)
        except OSError as error:
            log.warning("Whoever started the service cannot be told that it listens: %s", error)
