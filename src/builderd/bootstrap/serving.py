"""Run the service's process, below a supervisor. It listens first, and then imports and starts what its calls need."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path

from builderd.bootstrap.data_directory import lock, make, proxy_files
from builderd.bootstrap.engines import check_name
from builderd.core.loops import race
from builderd.previews.haproxy.process import worker_user
from builderd.server.answers import RequestIdFilter
from builderd.server.listener import Servers
from builderd.server.starting import ApiPort
from builderd.settings import Settings

log = logging.getLogger(__name__)
#: The rest of the service: its import and first use cost three times the CPU of all before.
SERVICE = "builderd.bootstrap.run"
#: Seconds after which a computing thread yields to the event loop. Python's default of 5 ms, several times in every
#: request, would slow all callers while one lists a large folder or reads a long log.
SWITCH_SECONDS = 0.001
#: Limit of open files: at most seven listeners with 4,000 connections each, and what the engine needs.
DESCRIPTORS = 50_000


def serve(settings: Settings, *, take_over: bool = False, new_database: bool = False) -> None:
    """Run the service until SIGTERM or SIGINT. Apps and previews keep running after it.

    Raises ``ValidationFailed`` for an unknown engine, ``DatabaseOwned`` when another service owns the database, unless
    with ``take_over`` and the other is silent, ``DatabaseLost`` when the database was emptied, unless with
    ``new_database``, and ``LeaseLost`` when another service took it over.
    """
    check_name(settings.engine)  # before anything is made
    supervisor = Supervisor()
    make(settings.data_dir)
    _log_to_stderr(settings.log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    # Shells give 1,024 open files, and every connection takes one.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    with lock(settings.data_dir, settings.local_url):
        asyncio.run(_serve(settings, supervisor, take_over=take_over, new_database=new_database))


def _log_to_stderr(level: str) -> None:
    """Log to stderr, one line a record, with the request id. Callers' secrets are never logged."""
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # The API logs its requests itself; requests that the service makes are logged by their purpose.
    for library in ("uvicorn", "alembic", "asyncssh", "httpx", "acme", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)


async def _serve(settings: Settings, supervisor: Supervisor, **owning: bool) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await race(_listen_and_run(settings, supervisor, **owning), stopping.wait())
    log.info("service stopped, apps and previews keep running")


async def _listen_and_run(settings: Settings, supervisor: Supervisor, **owning: bool) -> None:
    async with Servers() as servers:
        port = ApiPort(servers, settings.host, settings.port, lambda: supervisor.text)
        await port.listen()
        socket, user = api_socket(settings)
        if settings.public_host and socket.parent.exists():
            await port.listen_behind_proxy(socket, user)
        try:
            service = await asyncio.to_thread(import_module, SERVICE)
            await service.run(settings, supervisor, servers, port, **owning)
        finally:
            port.give_up()


def api_socket(settings: Settings) -> tuple[Path, str | None]:
    """Return the socket on which the previews' proxy reaches the API, and the user that it is."""
    return proxy_files(settings.data_dir).api_socket, worker_user()


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
