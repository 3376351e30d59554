"""A supervisor hears once that the service listens, and no child of the service can tell it anything."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from builderd.bootstrap.serving import Supervisor


@pytest.mark.parametrize("abstract", [False, True])
def test_supervisor_is_notified_at_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hears:
        hears.bind(f"\0{name}" if abstract else name)
        hears.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        supervisor = Supervisor()
        assert "NOTIFY_SOCKET" not in os.environ
        supervisor.ready()
        assert hears.recv(100) == b"READY=1"


def test_no_notification_without_a_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Supervisor().ready()


def test_missing_supervisor_socket_does_not_end_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Supervisor().ready()
    assert "supervisor not notified" in caplog.text
