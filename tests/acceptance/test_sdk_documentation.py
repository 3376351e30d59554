"""docs/sdk.md: its examples run against a real service, too."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.acceptance.live_service import TINY_APP, LiveService
from tests.unit.client.test_documentation import run_examples, write_folder

pytestmark = [pytest.mark.root, pytest.mark.haproxy]


def test_the_examples_of_the_sdk_run_against_a_real_service(
    service: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path, TINY_APP)
    monkeypatch.chdir(tmp_path)
    token = service.make_token("sdk", "--scope", "admin")
    monkeypatch.setenv("BUILDERD_URL", service.url)
    monkeypatch.setenv("BUILDERD_TOKEN", token)
    run_examples()
    (left,) = service.call("GET", "/builders", token=token).json()["data"]
    service.call("DELETE", f"/builders/{left['uuid']}", token=token)
    assert left["name"] == "hello-again"
    assert (tmp_path / "fetched/main.py").read_text() == TINY_APP
    printed = capsys.readouterr().out
    assert "http://hello-" in printed
    assert "not_found There is no builder with the name 'nowhere'." in printed
