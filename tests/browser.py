"""Chromium in a network of its own: other tests make and remove links of the machine, upon each of which Chromium ends
its requests with ERR_NETWORK_CHANGED."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from builderd.linux.syscalls import CLONE_NEWNET, unshare

CHROMIUM = "/usr/bin/chromium"
#: Get and set a device's flags (netdevice(7)).
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
IFREQ = struct.Struct("16sh14x")
PIECE = 1 << 16


class Network:
    """A network namespace with a loopback device alone, in which chosen ports lead to this machine's."""

    def __init__(self, folder: Path) -> None:
        # A socket stays in the namespace in which it was made: one thread makes all of them inside.
        self._inside = ThreadPoolExecutor(1, initializer=_begin)
        self._namespace = self._inside.submit(os.open, "/proc/thread-self/ns/net", os.O_RDONLY).result()
        self._loop = asyncio.new_event_loop()
        self._relaying = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._relaying.start()
        self._ports: set[int] = set()
        self.chromium = folder / "chromium"
        enter = f"nsenter --net=/proc/{os.getpid()}/fd/{self._namespace}"
        self.chromium.write_text(f'#!/bin/sh\nexec {enter} {CHROMIUM} "$@"\n')
        self.chromium.chmod(0o755)

    def reach(self, port: int) -> None:
        """Let 127.0.0.1 at this port lead to the same port outside."""
        if port in self._ports:
            return
        self._ports.add(port)
        listener = self._inside.submit(socket.create_server, ("127.0.0.1", port), backlog=128).result()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                out_reader, out_writer = await asyncio.open_connection("127.0.0.1", port)
                await asyncio.gather(_copy(reader, out_writer), _copy(out_reader, writer))
            writer.close()

        asyncio.run_coroutine_threadsafe(asyncio.start_server(relay, sock=listener), self._loop).result()

    def close(self) -> None:
        """End the relays and give the namespace back."""
        asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._relaying.join()
        self._loop.close()
        self._inside.shutdown()
        os.close(self._namespace)


@contextmanager
def own_network(*ports: int) -> Iterator[Network]:
    """Make a network for Chromium (``executable_path=network.chromium``) from which these ports are reached."""
    with TemporaryDirectory(prefix="bd-chromium-") as folder, closing(Network(Path(folder))) as network:
        for port in ports:
            network.reach(port)
        yield network


def _begin() -> None:
    unshare(CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = IFREQ.unpack(fcntl.ioctl(any_socket, SIOCGIFFLAGS, IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, IFREQ.pack(b"lo", flags | IFF_UP))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()
    except OSError:
        writer.transport.abort()
    finally:
        with suppress(OSError, RuntimeError):
            writer.write_eof()


async def _end_tasks() -> None:
    own = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not own]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
