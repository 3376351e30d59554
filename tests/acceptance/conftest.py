"""Services that acceptance tests share; those marked ``engines`` run on each engine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    "tests.acceptance.host_traces", "tests.acceptance.live_service", "tests.acceptance.scenarios"
)

from tests.acceptance.incus_service import INCUS, running_on  # noqa: E402
from tests.acceptance.live_service import LiveService, live_service  # noqa: E402
from tests.acceptance.on_engines import NOT_ON_INCUS, OnIncus, OwnEngine, engine_params  # noqa: E402
from tests.backends import RestServer, rest_server  # noqa: E402
from tests.incus import INTERNET, IncusCluster, address_of  # noqa: E402
from tests.package_index import package_index  # noqa: E402
from tests.weak_keys import make_for_service  # noqa: E402

ServiceOfModule = Callable[..., LiveService]

METRICS_TOKEN = "scrape"
#: Settings of tests of idle builders: frozen after a second, however often they are asked about.
IDLE = {"BUILDERD_IDLE__FREEZE_AFTER": "1", "BUILDERD_RATES__REQUESTS": "0"}
#: Settings of tests of apps that do not start: 25 seconds are waited for one to listen.
IMPATIENT = {"BUILDERD_LIMITS__START_TIMEOUT": "25"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked ``engines`` on each engine; refuse one that would not and is not named in NOT_ON_INCUS."""
    if not metafunc.definition.get_closest_marker("engines"):
        return
    name = metafunc.function.__name__
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", engine_params(name), indirect=True)
    elif name not in NOT_ON_INCUS:
        raise pytest.UsageError(f"{name} is to run on Incus, and uses no fixture that depends on engine")


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[OwnEngine | OnIncus]:
    """Return the engine that the test runs on; on a cluster, it is in the network of the first member meanwhile."""
    if getattr(request, "param", "own") != INCUS:
        yield OwnEngine()
        return
    on_incus: OnIncus = request.getfixturevalue("on_incus")
    with on_incus.cluster.network_of():
        yield on_incus


@pytest.fixture
def service(engine: OwnEngine | OnIncus, request: pytest.FixtureRequest) -> LiveService:
    """The service that tests share."""
    shared: LiveService = request.getfixturevalue(engine.shared)
    return shared


@pytest.fixture
def quick_to_give_up(engine: OwnEngine | OnIncus, request: pytest.FixtureRequest) -> LiveService:
    """A service that waits 25 seconds for an app to listen."""
    shared: LiveService = request.getfixturevalue(engine.impatient)
    return shared


@pytest.fixture(scope="module")
def service_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceOfModule]:
    """Return a function that starts a service of its own for a module, once on each engine, with the first settings.

    One that is ``used`` has had a builder: what is made once and kept is there.
    """
    made: dict[bool, LiveService] = {}
    with ExitStack() as stack:

        def started(engine: OwnEngine | OnIncus, *, used: bool = False, **settings: str) -> LiveService:
            if engine.is_incus not in made:
                service = stack.enter_context(engine.running(tmp_path_factory.mktemp("m") / "data", **settings))
                made[engine.is_incus] = service
                if used:
                    service.call("DELETE", f"/builders/{service.create('first')['uuid']}")
            return made[engine.is_incus]

        yield started


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(scope="session")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("service") / "data", BUILDERD_METRICS_TOKEN=METRICS_TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def idle_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("idle") / "data", **IDLE) as running:
        yield running


@pytest.fixture(scope="session")
def impatient_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    with live_service(tmp_path_factory.mktemp("quick") / "data", **IMPATIENT) as running:
        yield running


@pytest.fixture(scope="session")
def on_incus(incus3_cluster: IncusCluster) -> Iterator[OnIncus]:
    with package_index(INTERNET, incus3_cluster.network_of(0)) as indexes:
        yield OnIncus(incus3_cluster, {"BUILDERD_PACKAGE_INDEX": indexes.python, "BUILDERD_NPM_REGISTRY": indexes.npm})


@pytest.fixture(scope="session")
def incus_service(
    on_incus: OnIncus, rest_on_incus: RestServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveService]:
    """One for all: a service on a cluster takes seconds to start."""
    backups = {"BUILDERD_BACKUP__REPOSITORY": rest_on_incus.url}
    settings = {**IDLE, **IMPATIENT, **backups, "BUILDERD_METRICS_TOKEN": METRICS_TOKEN}
    data_dir = tmp_path_factory.mktemp("on-incus") / "data"
    with running_on(on_incus.cluster, data_dir, **on_incus.sources, **settings) as running:
        make_for_service(data_dir, rest_on_incus.folder)
        yield running


@pytest.fixture(scope="session")
def rest_on_incus(on_incus: OnIncus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestServer]:
    """A server for backups that every member reaches."""
    with rest_server(tmp_path_factory.mktemp("rest"), address_of(1), on_incus.cluster.network_of) as repository:
        yield repository
