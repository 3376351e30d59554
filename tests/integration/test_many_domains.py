"""Two thousand domains in a real proxy, and a renewal under load: minutes, run by script/soak."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.previews.test_domains import der, served
from tests.previews.certificates import make_pem
from tests.previews.proxy import App, Proxy, free_port

from builderd.adapters.previews.haproxy import process
from builderd.adapters.previews.haproxy.options import ProxyFiles
from builderd.domain.previews import DomainAlias

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.haproxy, pytest.mark.slow, pytest.mark.timeout(1800)]
DOMAINS, VISITS, VISITORS = 2_000, 60_000, 4


@pytest.fixture(scope="module")
def tls() -> Iterator[Proxy]:
    proxy = Proxy(tls_port=free_port())
    try:
        yield proxy.start()
    finally:
        proxy.close()


def worker_memory(proxy: Proxy) -> float:
    """Return the resident memory of master and workers, in MB."""
    files = ProxyFiles(proxy.directory)
    found = process.find_process(files.pid, files)
    assert found is not None
    master = found.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    rows = [Path(f"/proc/{pid}/status").read_text() for pid in (str(master), *children)]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in rows) / 1024


def handshakes(proxy: Proxy, aliases: list[DomainAlias]) -> float:
    """Return the median of a handshake in milliseconds."""
    times = []
    for alias in aliases:
        begun = time.perf_counter()
        assert served(proxy, alias.host) == der(alias)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def first_bytes(proxy: Proxy, host: str, rounds: int = 40) -> tuple[float, float]:
    """Return the median of a first byte in ms: on a new connection with its handshake, and on an open one."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    fresh: list[float] = []
    kept: list[float] = []
    for _ in range(rounds):
        begun = time.perf_counter()
        raw = socket.create_connection(("127.0.0.1", proxy.options.tls_port or 0), 20)
        with context.wrap_socket(raw, server_hostname=host) as connection:
            for times in (fresh, kept):
                connection.sendall(f"GET /head HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                received = connection.recv(65_536)
                times.append(1000 * (time.perf_counter() - begun))
                assert received.startswith(b"HTTP/1.1 200"), received[:100]
                begun = time.perf_counter()
    return statistics.median(fresh), statistics.median(kept)


def cpu_of(proxy: Proxy) -> float:
    """Return the CPU seconds of the workers so far."""
    files = ProxyFiles(proxy.directory)
    found = process.find_process(files.pid, files)
    assert found is not None
    master = found.pid
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in children]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def test_two_thousand_domains_cost_memory_and_no_time(tls: Proxy, app: App) -> None:
    preview = tls.open(app)
    aliases, installs = [], []
    before = worker_memory(tls)
    for number in range(DOMAINS):
        host = f"shop-{number}.example.com"
        alias = DomainAlias(host, preview, make_pem(host))
        begun = time.perf_counter()
        tls.run(tls.previews.put_domain(alias))
        installs.append(1000 * (time.perf_counter() - begun))
        aliases.append(alias)
        if number == 99:
            few = handshakes(tls, aliases)
    many = handshakes(tls, aliases[::20])
    first, last = statistics.median(installs[:100]), statistics.median(installs[-100:])
    grown = worker_memory(tls) - before
    log.info("install %.1f to %.1f ms, handshake %.1f to %.1f ms, memory +%.0f MB", first, last, few, many, grown)
    assert grown < 200
    # The next service adopts all of them.
    begun = time.perf_counter()
    service = tls.service()
    tls.run(service.start())
    log.info("adopted in %.2f s", time.perf_counter() - begun)
    assert len(tls.run(service.domains())) == DOMAINS


def test_first_bytes_do_not_wait_longer_among_two_thousand_domains(tls: Proxy, app: App) -> None:
    """Compare with a second proxy that has one domain, in turns: both see the machine's other load."""
    host = "shop-7.example.com"
    small = Proxy(tls_port=free_port())
    try:
        small.start()
        for proxy in (tls, small):
            proxy.run(proxy.previews.put_domain(DomainAlias(host, proxy.open(app), make_pem(host))))
        rounds, before = [(first_bytes(small, host), first_bytes(tls, host)) for _ in range(10)], cpu_of(small)
        for _ in range(10):
            first_bytes(small, host)
        cost = (cpu_of(small) - before) / 400
    finally:
        small.close()
    ours, theirs = ([statistics.median(one[which][kind] for one in rounds) for kind in (0, 1)] for which in (1, 0))
    load = os.getloadavg()[0]
    log.info("first byte with its handshake, and after it, ms: one domain %.1f %.1f, many %.1f %.1f", *theirs, *ours)
    log.info("CPU of the proxy for a connection with two requests: %.2f ms; load average %.1f", 1000 * cost, load)
    assert ours[1] < 3 * theirs[1] + 5


def test_no_visit_fails_while_certificates_are_renewed(tls: Proxy, app: App) -> None:
    host = "busy.example.com"
    tls.run(tls.previews.put_domain(DomainAlias(host, tls.open(app), make_pem(host))))
    failed: list[object] = []
    visits = [0] * VISITORS

    def visit(number: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert tls.options.tls_port is not None
        while visits[number] < VISITS // VISITORS:
            # The name for the certificate, the address of this machine.
            connection = http.client.HTTPSConnection("127.0.0.1", tls.options.tls_port, timeout=20, context=context)
            dialled = socket.create_connection(("127.0.0.1", tls.options.tls_port), 20)
            connection.sock = context.wrap_socket(dialled, server_hostname=host)
            try:
                for _ in range(100):
                    connection.request("GET", "/head", headers={"Host": host})
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status != 200:
                        failed.append(answer.status)
                    visits[number] += 1
            except (OSError, http.client.HTTPException) as error:
                failed.append(error)
                visits[number] += 1
            finally:
                connection.close()

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(VISITORS)]
    for thread in threads:
        thread.start()
    renewals = 0
    while any(thread.is_alive() for thread in threads):
        renewed = DomainAlias(host, tls.run(tls.previews.domains())[host][0], make_pem(host))
        tls.run(tls.previews.put_domain(renewed))
        renewals += 1
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    log.info("%d visits, %d renewals, %d failed", sum(visits), renewals, len(failed))
    assert not failed
    assert renewals > 10
