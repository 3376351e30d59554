"""Tokens made on the page: shown once, with no more than the session's own token may."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from tests.unit.web.conftest import Pages

from builderd.domain.tokens import Scope

CALLS = re.compile(r'data-l="Calls, 24 h" class="n">([^<]*)<')
SECRET = re.compile(r"bd_[A-Za-z0-9_-]{20,}")


async def test_a_new_token_is_shown_once_and_works(pages: Pages) -> None:
    answer = await pages.browser.post("/tokens", data={"name": "ci", "scope": ["read", "write"], "days": "30"})
    assert answer.status_code == 201
    secret = SECRET.findall(answer.text)[0]
    assert answer.headers["cache-control"] == "no-store"
    assert secret not in (await pages.browser.get("/tokens")).text
    current = (await pages.service.client(secret).get("/api/v1/tokens/current")).json()["data"]
    assert (current["name"], current["scopes"]) == ("ci", ["read", "write"])
    assert current["expires_at"] is not None

    made = await pages.service.client(secret).post("/api/v1/webhooks", json={"url": "https://example.com/hook"})
    assert made.status_code == 201
    revoked = await pages.browser.post("/tokens/revoke", data={"token": current["id"]})
    assert "The token ci is revoked" in revoked.text
    assert 'the webhook to <span class="m">https://example.com/hook</span>' in revoked.text
    assert (await pages.service.client(secret).get("/api/v1/tokens/current")).status_code == 401


async def test_calls_are_shown_of_the_last_24_hours_alone(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pages.service.client(pages.service.read)
    for _ in range(7):
        assert (await client.get("/api/v1/tokens/current")).status_code == 200
    assert CALLS.findall((await pages.browser.get("/tokens")).text).count("7") == 1
    later = pages.service.application.clock.now() + timedelta(hours=25)
    monkeypatch.setattr(pages.service.application.clock, "now", lambda: later)
    monkeypatch.setattr(pages.service.application.clock, "now", lambda: later)
    await pages.sign_in(pages.browser, await pages.service.token("acme", Scope.READ))
    assert set(CALLS.findall((await pages.browser.get("/tokens")).text)) == {"0"}


async def test_a_wrong_form_makes_no_token_and_is_shown_again(pages: Pages) -> None:
    wrongs: tuple[dict[str, object], ...] = ({"scope": []}, {"days": "99999"}, {"name": " "}, {"scope": ["root"]})
    for wrong in wrongs:
        form = {"name": "kept", "scope": ["read"], "days": "7", **wrong}
        answer = await pages.browser.post("/tokens", data=form)
        assert answer.status_code == 422, wrong
        assert 'class="hint bad"' in answer.text
        assert not SECRET.findall(answer.text)


async def test_no_token_gets_more_than_the_sessions_own(pages: Pages) -> None:
    form = {"name": "sly", "scope": ["operator"], "days": ""}
    # Also not from an operator: the scope is granted on the machine alone.
    assert (await pages.browser.post("/tokens", data=form)).status_code == 403
    async with pages.stranger() as browser:
        await pages.sign_in(browser, await pages.service.token("acme", Scope.WRITE, Scope.SKIP_GATES))
        assert (await browser.post("/tokens", data={**form, "scope": ["read"]})).status_code == 403
        assert "New token" not in (await browser.get("/tokens")).text
