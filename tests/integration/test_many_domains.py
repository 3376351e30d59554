"""Two thousand domains in a real proxy, and a renewal under load: minutes, run by script/soak."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.previews.certificates import make_pem
from tests.previews.proxy import App, Proxy, free_port

from builderd.previews.haproxy import process
from builderd.previews.haproxy.options import ProxyFiles
from builderd.previews.model import DomainAlias

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


def test_two_thousand_domains_take_little_memory_and_are_adopted(tls: Proxy, app: App) -> None:
    preview = tls.open(app)
    before = worker_memory(tls)
    for number in range(DOMAINS):
        host = f"shop-{number}.example.com"
        tls.run(tls.previews.put_domain(DomainAlias(host, preview, make_pem(host))))
    assert worker_memory(tls) - before < 200
    service = tls.service()
    tls.run(service.start())
    assert len(tls.run(service.domains())) == DOMAINS


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
    assert not failed
    assert renewals > 10
