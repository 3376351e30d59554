"""A renewed certificate reaches the proxy, also one that could not take it at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from builderd.adapters.previews.haproxy import domain_table, runtime_api
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyGone


@pytest.mark.parametrize("fault", [ProxyGone("away"), CommandRefused("no certificate")])
async def test_certificate_failure_is_retried_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    (tmp_path / "c.pem").write_text("certificate")
    tried: list[str] = []
    taken = asyncio.Event()

    async def replace(socket: Path, file: Path, pem: str) -> None:
        tried.append(pem)
        if len(tried) < 3:
            raise fault
        taken.set()

    monkeypatch.setattr(runtime_api, "replace_certificate", replace)
    monkeypatch.setattr(domain_table, "CERTIFICATE_INTERVAL", 0)
    watch = asyncio.create_task(domain_table.watch_certificate(tmp_path / "c.pem", tmp_path / "admin.sock"))
    await asyncio.wait_for(taken.wait(), 10)
    await asyncio.sleep(0.01)
    watch.cancel()
    assert tried == ["certificate"] * 3
    assert caplog.text.count("certificate rejected") == isinstance(fault, CommandRefused)
