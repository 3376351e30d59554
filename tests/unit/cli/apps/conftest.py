"""A home of its own for each test, with an app's folder, and a service on fakes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.application import hurry
from tests.threaded_service import Running, threaded_service


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The app's folder, which is the working directory."""
    for name in [name for name in os.environ if name.startswith("BUILDERD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("builderd.client._sync.builder.WATCH_SECONDS", {})
    app = tmp_path / "my-app"
    app.mkdir()
    (app / "main.py").write_text("import http.server\nprint('hello')\n")
    monkeypatch.chdir(app)
    return app


@pytest.fixture
def running(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    hurry(monkeypatch.setattr)
    with threaded_service() as started:
        monkeypatch.setenv("BUILDERD_URL", started.url)
        monkeypatch.setenv("BUILDERD_TOKEN", started.admin)
        yield started
