"""Send readiness and status to the supervisor that started the service, by the protocol of sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)


class Supervisor:
    """The supervisor's notification socket; messages go nowhere when the service was started by hand.

    Its address is removed from the environment: container runtimes that see it wait for their apps to be ready.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        #: The last text of ``status``.
        self.text = ""

    def ready(self) -> None:
        """Send that the service listens."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show one line of text in ``systemctl status``, and in ``/readyz`` while the service starts."""
        self.text = text
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # The variable writes @ for the NUL byte that begins an abstract address.
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto(message.encode(), address)
        except OSError as error:
            log.warning("supervisor not notified message=%s error=%s", message, error)
