"""The app that is deployed again and again, its kin, and what tests ask of it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tests.acceptance.live_service import LiveService

#: Programs and pages of the apps.
TEXTS: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
APP, SOCKETS = TEXTS["app"], TEXTS["sockets"]

#: Starts on trial, where it is let through to nobody, and ends where it takes over, be the service dead or alive: or
#: stalled, for the kernel takes connections in its place.
SHY = f"""\
import os, socket, sys, urllib.parse
service = urllib.parse.urlsplit(os.environ["BUILDERD_URL"])
try:
    socket.create_connection((service.hostname, service.port), 5).close()
    is_trial = False
except OSError as error:
    is_trial = not isinstance(error, ConnectionRefusedError)
if not is_trial:
    sys.exit("this is no trial")
{TEXTS["app"]}"""
FILES = {"main.py": APP, "settings.ini": "a", "kept.txt": "x", "old.txt": "x"}


def put(service: LiveService, data: dict[str, Any], **change: Any) -> dict[str, Any]:
    """Deploy a version that takes over; the builder as it is then."""
    response = service.call("PUT", f"/builders/{data['uuid']}", json=change)
    assert response.status_code == 200, response.text
    shown: dict[str, Any] = response.json()["data"]
    return shown
