"""The password of a private package index is in no file, no argument and no line of an install."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.integration.oci.package_index import serve, wheel
from tests.integration.oci.test_builds import ALICE, INDEX_PORT, Workshop, workshop
from tests.integration.oci.test_npm_builds import registry

from builderd.code.model import BundleFile, make_bundle
from builderd.credentials.model import PackageSources, read_sources
from builderd.dependencies.installers.installers import Installers, UvInstaller
from builderd.dependencies.installers.npm import NpmInstaller
from builderd.dependencies.model import LayerPlan

pytestmark = pytest.mark.root

__all__ = ["workshop"]

INSTALLERS = Installers(UvInstaller("test"), NpmInstaller())
OWN = wheel("ownpackage", {"ownpackage.py": "GREETING = 'private'\n"})


def sources_of(index: str, login: str, version: str = "index 2026") -> PackageSources:
    sources = read_sources({"PIP_INDEX_URL": index.replace("://", f"://{login}@")}, [version])
    assert sources is not None
    return sources


def private(workshop: Workshop, sources: PackageSources) -> LayerPlan:
    return INSTALLERS.from_sources(workshop.plan("ownpackage", None, ALICE), sources, ALICE)


@asynccontextmanager
async def arguments_watched(word: bytes) -> AsyncIterator[list[bytes]]:
    """Collect the command lines on this machine that hold the word, for as long as the context lasts."""
    found: list[bytes] = []

    async def watch() -> None:
        while True:
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    line = (process / "cmdline").read_bytes()
                    found.extend([line] if word in line else [])
            await asyncio.sleep(0.2)

    task = asyncio.create_task(watch())
    try:
        yield found
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def files_with(word: bytes, *folders: Path) -> list[str]:
    # A file may end meanwhile, which grep reports by its exit code.
    done = subprocess.run(["grep", "-rlFs", "-D", "skip", word, *folders], stdout=subprocess.PIPE, check=False)
    return done.stdout.decode(errors="replace").splitlines()


async def test_password_of_an_index_is_in_no_file_argument_or_line(workshop: Workshop, tmp_path: Path) -> None:
    password = secrets.token_hex(12)
    lines: list[str] = []
    with serve(workshop.machine.addresses.gateway, INDEX_PORT, OWN, login=f"robot:{password}") as index:
        plan = private(workshop, sources_of(index, f"robot:{password}"))
        async with arguments_watched(password.encode()) as seen:
            outcome = await workshop.layers.build_layer(plan, lines.append)
        assert outcome.ok, outcome.output
        wrong = private(workshop, sources_of(index, "robot:wrong-password", "index 2027"))
        refused = await workshop.layers.build_layer(wrong, lines.append)
    assert (workshop.packages(plan) / "ownpackage.py").read_text() == "GREETING = 'private'\n"
    assert password not in f"{lines} {plan} {outcome}"
    assert seen == []
    store = workshop.machine.store.root
    assert files_with(password.encode(), store, tmp_path) == []
    # What the private index served is not in the cache that all tenants share.
    assert files_with(b"GREETING = 'private'", store / "cache") == []
    assert not refused.ok
    assert "wrong-password" not in f"{lines} {refused}"


@pytest.mark.slow
async def test_token_of_a_registry_is_in_no_file_argument_or_line(workshop: Workshop, tmp_path: Path) -> None:
    token = secrets.token_hex(12)
    lines: list[str] = []
    bundle = make_bundle([BundleFile("package.json", json.dumps({"dependencies": {"evil": "1.0.0"}}).encode())])
    plan = INSTALLERS.plan(bundle, workshop.machine.base.id, ALICE)
    assert plan is not None
    with registry(workshop.machine.addresses.gateway, token, INDEX_PORT) as url:
        sources = read_sources({"NPM_CONFIG_REGISTRY": url, "NPM_TOKEN": token}, ["npm 2026"])
        assert sources is not None
        made = INSTALLERS.from_sources(plan, sources, ALICE)
        async with arguments_watched(token.encode()) as seen:
            outcome = await workshop.layers.build_layer(made, lines.append)
    assert outcome.ok, outcome.output
    assert (workshop.layers.lower(made.key) / "node_modules/evil/package.json").exists()
    assert token not in f"{lines} {made} {outcome}"
    assert seen == []
    assert files_with(token.encode(), workshop.machine.store.root, tmp_path) == []
