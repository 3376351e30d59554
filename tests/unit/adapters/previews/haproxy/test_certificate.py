"""A renewed certificate reaches the proxy, also one that could not take it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from builderd.adapters.previews.haproxy import runtime_api
from builderd.adapters.previews.haproxy.certificate import Certificate
from builderd.adapters.previews.haproxy.runtime_api import CommandRefused, ProxyBusy, ProxyGone


@pytest.mark.parametrize(
    ("fault", "tries"), [(ProxyGone("away"), 3), (ProxyBusy("locked"), 3), (CommandRefused("no certificate"), 1)]
)
async def test_temporary_certificate_failure_is_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, tries: int
) -> None:
    (tmp_path / "c.pem").write_text("certificate")
    tried: list[str] = []

    async def replace(socket: Path, file: Path, pem: str) -> None:
        tried.append(pem)
        if len(tried) < 3:
            raise fault

    monkeypatch.setattr(runtime_api, "replace_certificate", replace)
    watch = Certificate(tmp_path / "c.pem", tmp_path / "admin.sock")
    for _ in range(5):
        await watch.renew()
    assert tried == ["certificate"] * tries
