"""Layers of Node packages and of requirements from git, as they are really made."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.integration.oci.stores import OPTIONS, quiet

from builderd.code.model import BundleFile, make_bundle
from builderd.core.ids import TenantId
from builderd.dependencies.installers.npm import NpmInstaller
from builderd.dependencies.model import BuildOutcome, LayerPlan
from builderd.engine.oci.engine.machine import Machine
from builderd.engine.port import EngineOptions

pytestmark = pytest.mark.root

PORT = 18974
MALLORY = TenantId("mallory")
#: Marks every place that a later build could read from, and leaves a link to the host's passwords.
ATTACK = (
    "for place in $PWD /build/store/cache /build/store/layer /build/input /usr/bin; do "
    "echo MARKED > $place/MARK 2>/dev/null; done; ln -s /etc/shadow shadow; exit 0"
)
#: Commands whose name or file lies outside of the package.
COMMANDS = {"ok": "run.js", "../../../store/cache/MARK": "run.js", "out": "../../../../../../etc/passwd", "/MARK": "x"}
PACKAGE = {
    "name": "evil",
    "version": "1.0.0",
    "bin": COMMANDS,
    "scripts": {"preinstall": ATTACK, "postinstall": ATTACK},
}
#: Entries that are no files: kind, name, and what they lead to.
ENTRIES = (
    (tarfile.SYMTYPE, "package/shadow", "/etc/shadow"),
    (tarfile.SYMTYPE, "package/up", "../../../../../etc"),
    (tarfile.LNKTYPE, "package/hard", "../../../../store/cache/MARK"),
    (tarfile.FIFOTYPE, "package/pipe", ""),
    (tarfile.CHRTYPE, "package/device", ""),
)


#: Files whose names lead out of the package.
SLIPS = tuple(
    (path, "slipped") for path in ("../../store/cache/SLIP", "/build/store/cache/ABSOLUTE", "package/../../SLIP")
)


def tarball() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for path, text in (
            ("package/package.json", json.dumps(PACKAGE)),
            ("package/run.js", "#!/usr/bin/node"),
            *SLIPS,
        ):
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for kind, path, target in ENTRIES:
            member = tarfile.TarInfo(path)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return content.getvalue()


@contextmanager
def registry(host: str, token: str = "", port: int = PORT) -> Iterator[str]:
    """A registry with one package, at its address; it asks for the ``token``, if there is one."""
    url, archive = f"http://{host}:{port}", tarball()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    dist = {"tarball": f"{url}/evil/-/evil-1.0.0.tgz", "integrity": integrity}
    document = {
        "name": "evil",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": {**PACKAGE, "hasInstallScript": True, "dist": dist}},
    }
    pages = {"/evil": json.dumps(document).encode(), "/evil/-/evil-1.0.0.tgz": archive}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = pages.get(self.path, b"{}")
            known = not token or self.headers.get("Authorization") == f"Bearer {token}"
            content = content if known else b"{}"
            self.send_response(401 if not known else 200 if self.path in pages else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            return

    with ThreadingHTTPServer((host, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(EngineOptions(tmp_path / "data", PORT, store=OPTIONS))
    await machine.open(quiet)
    yield machine
    tidy = list(machine.store.builds.iterdir()) == [] and machine.runs.all() == []
    machine.runs.close()
    machine.launcher.close()
    machine.give_back()
    assert tidy


async def install(machine: Machine, *, scripts: bool) -> tuple[LayerPlan, BuildOutcome]:
    bundle = make_bundle([BundleFile("package.json", json.dumps({"dependencies": {"evil": "1.0.0"}}).encode())])
    with registry(machine.addresses.gateway) as url:
        plan = NpmInstaller(url).plan(bundle, machine.base.id, MALLORY, install_scripts=scripts)
        assert plan
        return plan, await machine.layers.build_layer(plan, quiet)


def marks(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.name in ("MARK", "SLIP", "shadow"))


def strange(layer: Path) -> list[str]:
    """Return links that lead out of the layer, and what is neither a file, a folder nor a link."""
    found = []
    for path in layer.rglob("*"):
        if path.is_symlink():
            inside = (path.parent / path.readlink()).resolve().is_relative_to(layer.resolve())
        else:
            inside = path.is_file() or path.is_dir()
        found += [] if inside else [str(path.relative_to(layer))]
    return found


async def test_no_script_of_a_package_runs_unless_it_was_asked_for(machine: Machine) -> None:
    plan, outcome = await install(machine, scripts=False)
    assert outcome.ok, outcome.output
    layer = machine.layers.lower(plan.key)
    assert (layer / "node_modules/evil/package.json").is_file()
    assert strange(layer) == []
    assert [path.name for path in layer.iterdir()] == ["node_modules"]
    assert marks(machine.store.root) == []
    assert not (machine.store.root / "cache/ABSOLUTE").exists(), "npm takes the first part of each name away"


async def test_scripts_that_were_asked_for_reach_nothing_that_others_read(machine: Machine) -> None:
    plan, outcome = await install(machine, scripts=True)
    assert not outcome.ok
    assert "beside what was installed" in outcome.output[-1]
    assert not machine.layers.has(plan.key)
    assert marks(machine.store.root / "cache") == []
    assert not any((Path(lower) / "usr/bin/MARK").exists() for lower in machine.lowers())
