"""Broken apps on the real parts: each answer names the cause and the change that mends it.

``-s`` prints the messages. ``tests/unit/test_broken_apps.py`` has the same ways to fail on the pure functions.
"""

from __future__ import annotations

import pytest
from tests.acceptance.broken_apps import BROKEN, Broken
from tests.acceptance.live_service import LiveService
from tests.acceptance.on_engines import OnIncus, OwnEngine

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.engines]

#: An instance has the address ::1, which a sandbox of this machine has not.
CAUSES_ON_INCUS = {"IPv6 loopback": "listens on [::1]:8000"}
SLOW = {"slow.py": "import time\ntime.sleep(600)\n"}


@pytest.mark.parametrize("name", BROKEN)
def test_answer_names_the_cause_and_the_change(engine: OwnEngine | OnIncus, service: LiveService, name: str) -> None:
    app = BROKEN[name]
    cause = CAUSES_ON_INCUS.get(name, app.cause) if engine.is_incus else app.cause
    answer = service.call("POST", "/builders", json=_request(app))
    try:
        message = answer.json()["message"]
        print(f"\n--- {name}: {answer.status_code} {answer.json()['code']}\n{message}")  # noqa: T201 -- to be read with -s
        assert (answer.status_code, answer.json()["code"]) == (422, app.code), message
        assert cause in message
        assert app.change in message
    finally:
        if made := (answer.json().get("data") or {}).get("uuid"):
            service.call("DELETE", f"/builders/{made}?purge=true")


def _request(app: Broken) -> dict[str, object]:
    files = {**app.files, **(SLOW if "import slow" in str(app.files.get("main.py")) else {})}
    return {"name": "broken", "entrypoint": app.entrypoint, "files": files, "port": 8000, **app.fields}
