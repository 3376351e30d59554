"""Requirements with ``git+https://``: cloned from a real server, if egress and its certificate allow it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from tests.integration.oci.git_server import PORT, make_repository, serving_git
from tests.integration.oci.package_index import BACKEND, PYPROJECT
from tests.integration.oci.stores import OPTIONS, quiet
from tests.integration.oci.test_builds import INDEX_PORT, Workshop, opened_workshop
from tests.outside import outside
from tests.previews.certificates import write_certificate

from builderd.dependencies.installers.installers import UvInstaller
from builderd.engine.port import EngineOptions

pytestmark = pytest.mark.root

#: Private, so that only the setting lets a sandbox reach it.
SERVER = f"10.78.{os.getpid() % 250}.7"
REPOSITORY = {
    "pyproject.toml": PYPROJECT.format(name="greeting"),
    "backend.py": BACKEND.format(name="greeting"),
    "attack.py": "def attack():\n    return 'hello from git'\n",
}


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[bytes]:
    """The certificate of a server that has the repository, which its visitors must trust."""
    file = tmp_path / "server.pem"
    write_certificate(file, "git", f"IP:{SERVER}")
    make_repository(tmp_path / "served/greeting.git", REPOSITORY, "v1")
    with outside(SERVER) as there, serving_git(there, tmp_path / "served", file):
        yield file.with_suffix(".crt").read_bytes()


@pytest.fixture
async def allowed(tmp_path: Path) -> AsyncIterator[Workshop]:
    network = IPv4Network(f"{SERVER}/32")
    async with opened_workshop(
        EngineOptions(tmp_path / "data", INDEX_PORT, store=OPTIONS, allow=(network,))
    ) as workshop:
        yield workshop


def trust(workshop: Workshop, certificate: bytes) -> None:
    """Add the certificate to those that sandboxes trust, as a host that trusts it does."""
    bundle = workshop.machine.lowers()[0] / "etc/ssl/certs/ca-certificates.crt"
    bundle.write_bytes(bundle.read_bytes() + b"\n" + certificate)


def requirement(revision: str) -> str:
    return f"greeting @ git+https://{SERVER}:{PORT}/greeting.git@{revision}"


async def test_package_is_cloned_from_a_git_server_over_https(allowed: Workshop, authority: bytes) -> None:
    plan = allowed.plan(requirement("v1"), None)
    assert plan.runs_foreign_code
    refused = await allowed.layers.build_layer(plan, quiet)
    assert not refused.ok
    assert "certificate" in UvInstaller("test").explain(refused.output)
    trust(allowed, authority)
    outcome = await allowed.layers.build_layer(plan, quiet)
    assert outcome.ok, outcome.output
    assert allowed.report(plan) == "hello from git"
    missing = await allowed.layers.build_layer(allowed.plan(requirement("v2"), None), quiet)
    assert not missing.ok
    assert "v2" in UvInstaller("test").explain(missing.output)


@pytest.mark.slow
async def test_git_server_that_egress_does_not_allow_is_not_reached(tmp_path: Path, authority: bytes) -> None:
    async with opened_workshop(EngineOptions(tmp_path / "data", INDEX_PORT, store=OPTIONS)) as workshop:
        trust(workshop, authority)
        outcome = await workshop.layers.build_layer(workshop.plan(requirement("v1"), None), quiet)
    assert not outcome.ok
    assert SERVER in UvInstaller("test").explain(outcome.output)
