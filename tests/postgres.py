"""A throw-away PostgreSQL server for tests, from the binaries of Debian's package, and a database in it for each test.

It listens on a Unix socket alone, in a folder of its own that goes with it. To find mistakes, it is made unlike what
the store would like: its texts are sorted as in a dictionary, and its clock is not in UTC.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from builderd.database.unit_of_work import Store

USER = "postgres"
INITDB = ["--username", USER, "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
UNLIKE_OURS = ["--locale-provider=icu", "--icu-locale=en"]
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "timezone": "Asia/Kolkata",
    "deadlock_timeout": "50ms",
}
START_TIMEOUT = 60.0
#: A new database is a copy of some 7 MB: four times as fast in memory.
MEMORY = Path("/dev/shm")


class PostgresServer:
    """Running server. ``database`` lends a new database to a test."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self._folder = folder
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        self._argv = [str(binaries / "postgres"), "-D", str(folder / "data"), "-k", str(folder), *settings]
        self._names = (f"test_{number}" for number in count(1))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(_unprivileged(self._argv), stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + START_TIMEOUT
        while not self.answers():
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL does not answer: {(self._folder / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, but in order; connections are closed."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_TIMEOUT)

    def become_standby(self) -> None:
        """Restart it as a standby of nobody: it takes only reads."""
        self.stop()
        (self._folder / "data" / "standby.signal").touch()
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@/{database}?host={self._folder}"

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a new database, dropped at the end even while somebody is connected to it."""
        name = next(self._names)
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield self.url(name)
        finally:
            self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def answers(self) -> bool:
        try:
            self._execute(sql.SQL("SELECT 1"))
        except psycopg.OperationalError:
            return False
        return True

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Have it take connections, and say nothing to any."""
        pid = int((self._folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(f"user={USER} dbname=postgres host={self._folder}", autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def run_server(binaries: Path) -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="builderd-postgres-", dir=MEMORY if MEMORY.is_dir() else None))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
        data = folder / "data"
        initdb = [str(binaries / "initdb"), "--pgdata", str(data), *INITDB, *UNLIKE_OURS]
        subprocess.run(_unprivileged(initdb), check=True, capture_output=True, cwd=folder)
        server = PostgresServer(folder, binaries)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(argv: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root. Whatever ends the tests ends the server too."""
    identity = ["--reuid", USER, "--regid", USER, "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *identity, "--pdeathsig", "INT", "--", *argv]


def find_binaries() -> Path | None:
    """The folder with initdb and postgres, of the newest version that is installed."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    with run_server(binaries) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_database(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the name of a database with nothing but the schema: a copy of it takes less than a migration."""
    with postgres_server.database() as url:
        store = Store(url)
        store._migrate()
        store._close()
        yield urlsplit(url).path.removeprefix("/")


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, migrated_database: str) -> Iterator[str]:
    """Return the URL of a database of this test's own, with the schema and nothing else in it."""
    with postgres_server.database(migrated_database) as url:
        yield url
