"""Visits of running apps go on through the standby of a cluster while the service that works is replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from tests.acceptance.live_service import LiveService
from tests.acceptance.test_cluster_services import Asking, Services, share_keys, wait_working
from tests.incus import running_cluster
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.root, pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Services]:
    """Two services, of which the first works."""
    with running_cluster(1) as cluster, postgres_server.database() as database, cluster.network_of():
        running = Services(cluster, tmp_path_factory.mktemp("services"), database)
        try:
            running.one.start()
            with pytest.raises(AssertionError, match="the service ended with 4"):
                running.two.start()
            share_keys(running.one, running.two)
            yield running
        finally:
            running.down()


def replaced(
    services: Services, worker: LiveService, standby: LiveService, end: Callable[[], object]
) -> tuple[float, Asking, Asking, Asking]:
    """End the service that works; return the seconds until the next one does, and what visitors of the standby saw.

    The visits are those of a public app, of a private one, and of one that was made private just before.
    """
    public, private = (worker.create(name, visibility=name) for name in ("public", "private"))
    changed = worker.create("changed")
    services.stand_by(standby)
    standby.wait_ready()
    time.sleep(5)
    assert standby.visit(public).status_code == 200
    hidden = worker.call("PATCH", f"/builders/{changed['uuid']}", json={"visibility": "private"})
    assert hidden.status_code == 200, hidden.text
    with (
        Asking(lambda: standby.visit(public)) as visits,
        Asking(lambda: standby.visit(private)) as refused,
        Asking(lambda: standby.visit(changed)) as hiding,
    ):
        began = time.monotonic()
        end()
        wait_working(standby)
        standby.wait_served(public)
        seconds = time.monotonic() - began
        time.sleep(5)
    print(f"continued after {seconds:.1f} s; visits of a public app: {visits.described()}")  # noqa: T201
    return seconds, visits, refused, hiding


def test_visits_go_on_while_a_killed_service_is_continued(services: Services) -> None:
    one, two = services.one, services.two
    _, visits, refused, hiding = replaced(services, one, two, one.kill)
    assert failures(visits) <= 3
    assert not [status for _, _, status in (*refused.answers, *hiding.answers) if status == 200]
    # Another app never gets the address at once.
    assert two.visit(two.create("later")).text == "hello"


def test_visits_go_on_while_a_service_that_ends_in_order_is_continued(services: Services) -> None:
    one, two = services.one, services.two
    _, visits, refused, hiding = replaced(services, two, one, two.terminate)
    assert failures(visits) <= 3
    assert not [status for _, _, status in (*refused.answers, *hiding.answers) if status == 200]


def failures(asking: Asking) -> int:
    return sum(status != 200 for _, _, status in asking.answers)
