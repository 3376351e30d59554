"""Sessions over HTTP: the cookie, guesses, links, and their end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from tests.fakes.identity import FakeIdentityProvider
from tests.unit.web.conftest import ORIGIN, Pages

from builderd.sessions import service as sessions
from builderd.tokens.model import Identity, Scope
from builderd.web.policy import SESSION, SIGN_IN_ATTEMPT


async def test_the_cookie_is_kept_from_scripts_and_other_sites(pages: Pages) -> None:
    async with pages.stranger() as browser:
        answer = await pages.sign_in(browser, pages.service.read)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{SESSION.plain_name}=bdw_")
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert "Domain" not in cookie


async def test_under_tls_the_cookie_is_bound_to_this_host(pages: Pages) -> None:
    async with pages.stranger() as browser:
        browser.base_url = "https://builderd"
        browser.headers["Origin"] = "https://builderd"
        cookie = (await pages.sign_in(browser, pages.service.read)).headers["set-cookie"]
    assert cookie.startswith(f"{SESSION.secure_name}=")
    assert "Secure" in cookie


async def test_without_a_session_pages_send_to_the_sign_in_page_and_back(pages: Pages) -> None:
    async with pages.stranger() as browser:
        answer = await browser.get("/builders/my-api/logs?q=x")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/sign-in?next=%2Fbuilders%2Fmy-api%2Flogs%3Fq%3Dx"
        assert (await browser.post("/sessions", data={})).status_code == 401
        target = await browser.post("/sign-in", data={"token": pages.service.read, "next": "/builders/my-api/logs?q=x"})
        assert target.headers["location"] == "/builders/my-api/logs?q=x"


async def test_signing_in_never_leads_to_another_site(pages: Pages) -> None:
    async with pages.stranger() as browser:
        for target in (
            "https://evil.example",
            "//evil.example",
            "/\\evil.example",
            "javascript:alert(1)",
            "/a\r\nX: y",
        ):
            answer = await browser.post("/sign-in", data={"token": pages.service.read, "next": target})
            assert answer.headers["location"] == "/builders"


async def test_a_wrong_token_is_answered_the_same_and_guesses_are_slowed(pages: Pages) -> None:
    pages.service.app.state.operations.rates._failures.limit = 3
    async with pages.stranger() as browser:
        codes = [(await pages.sign_in(browser, f"bd_{number}")).status_code for number in range(5)]
        assert codes == [401, 401, 401, 429, 429]
        # A valid token still signs in: behind a proxy all people share an address.
        assert (await pages.sign_in(browser, pages.service.read)).status_code == 303


async def test_a_link_shows_a_button_and_is_spent_by_it(pages: Pages) -> None:
    now = pages.service.application.clock.now()
    code = await pages.service.store.write(lambda uow: sessions.make_link(uow, "acme", {Scope.READ}, now))
    async with pages.stranger() as browser:
        for _ in range(2):
            shown = await browser.get(f"/sign-in/once/{code}")
            assert shown.status_code == 200
            assert "set-cookie" not in shown.headers
        assert (await browser.post(f"/sign-in/once/{code}")).headers["location"] == "/builders"
        assert (await browser.get("/builders")).status_code == 200
        assert (await browser.post(f"/sign-in/once/{code}")).status_code == 401


async def test_the_code_of_a_link_is_not_logged(pages: Pages, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with pages.stranger() as browser:
        await browser.get("/sign-in/once/bdl_secret")
    assert "/sign-in/once/…" in caplog.text
    assert "bdl_secret" not in caplog.text.replace("GET http://builderd/sign-in/once/bdl_secret", "")


async def test_the_link_is_not_spent_by_another_site(pages: Pages) -> None:
    now = pages.service.application.clock.now()
    code = await pages.service.store.write(lambda uow: sessions.make_link(uow, "acme", {Scope.READ}, now))
    async with pages.stranger() as browser:
        for headers in ({"Origin": "http://evil"}, {"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"}):
            assert (await browser.post(f"/sign-in/once/{code}", headers=headers)).status_code == 403
        assert (await browser.post(f"/sign-in/once/{code}")).status_code == 303


async def test_two_cookies_of_the_name_are_none(pages: Pages) -> None:
    secret = pages.browser.cookies[SESSION.plain_name]
    async with pages.stranger() as browser:
        for cookie in (
            f"{SESSION.plain_name}=bdw_planted; {SESSION.plain_name}={secret}",
            f"{SESSION.plain_name}={secret}; {SESSION.plain_name}=x",
        ):
            assert (await browser.get("/builders", headers={"Cookie": cookie})).status_code == 303
        assert (await browser.get("/builders", headers={"Cookie": f"{SESSION.plain_name}={secret}"})).status_code == 200


async def test_signing_out_ends_the_session_for_copies_of_its_cookie(pages: Pages) -> None:
    secret = pages.browser.cookies[SESSION.plain_name]
    answer = await pages.browser.post("/sign-out")
    assert answer.headers["location"] == "/sign-in?done=signed-out"
    async with pages.stranger() as browser:
        assert (await browser.get("/builders", headers={"Cookie": f"{SESSION.plain_name}={secret}"})).status_code == 303


async def test_sessions_are_listed_and_ended_all_at_once(pages: Pages) -> None:
    secret = await pages.service.token("acme", Scope.READ)
    async with pages.stranger() as one, pages.stranger() as other:
        for browser in (one, other):
            await pages.sign_in(browser, secret)
        text = (await one.get("/sessions")).text
        assert text.count('name="session"') == 2
        await one.post("/sessions", data={})
        assert (await other.get("/builders")).status_code == 303
    assert (await pages.browser.get("/builders")).status_code == 200


async def test_a_session_ends_with_its_token(pages: Pages) -> None:
    secret = await pages.service.token("acme", Scope.READ)
    async with pages.stranger() as browser:
        await pages.sign_in(browser, secret)
        await pages.service.revoke(secret)
        assert (await browser.get("/builders")).status_code == 303


async def test_a_session_is_no_token_of_the_api_and_a_token_no_session(pages: Pages) -> None:
    secret = pages.browser.cookies[SESSION.plain_name]
    assert (await pages.browser.get("/api/v1/builders")).status_code == 401
    async with pages.stranger() as browser:
        bearer = {"Authorization": f"Bearer {secret}"}
        assert (await browser.get("/api/v1/builders", headers=bearer)).status_code == 401
        bearer = {"Authorization": f"Bearer {pages.service.write}"}
        assert (await browser.get("/builders", headers=bearer)).status_code == 303


ADA = Identity("ada@example.org", "acme", frozenset({Scope.WRITE}))


@pytest.fixture
def provider(pages: Pages) -> FakeIdentityProvider:
    found = FakeIdentityProvider()
    pages.web.state.application = replace(pages.service.application, identity_provider=found)
    return found


@pytest.fixture
async def browser(pages: Pages) -> AsyncIterator[httpx.AsyncClient]:
    async with pages.stranger() as browser:
        yield browser


async def there(browser: httpx.AsyncClient, target: str = "/builders") -> str:
    """Begin; return the state that the provider is given."""
    answer = await browser.get("/sign-in/openid", params={"next": target})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=lax", "Max-Age=600"))
    return parse_qs(urlsplit(answer.headers["location"]).query)["state"][0]


async def test_a_person_signs_in_and_goes_on_where_they_wanted(
    pages: Pages, provider: FakeIdentityProvider, browser: httpx.AsyncClient
) -> None:
    provider.people["good"] = ADA
    state = await there(browser, "/tokens?x=1")
    answer = await browser.get("/sign-in/openid/back", params={"code": "good", "state": state})
    # No redirect: a browser would not send a Strict cookie on a way that began at another site.
    assert answer.status_code == 200
    assert 'content="0; url=/tokens?x=1"' in answer.text
    session = next(one for one in answer.headers.get_list("set-cookie") if one.startswith(SESSION.plain_name))
    assert "SameSite=strict" in session
    assert SIGN_IN_ATTEMPT.plain_name not in browser.cookies
    assert "sso ada@example.org" in (await browser.get("/tokens")).text
    # The code and the attempt are spent.
    answer = await browser.get("/sign-in/openid/back", params={"code": "good", "state": state})
    assert answer.status_code == 401


async def test_only_the_browser_that_began_comes_back(
    pages: Pages, provider: FakeIdentityProvider, browser: httpx.AsyncClient
) -> None:
    """An attacker's link with a code of the attacker's would sign the victim in as the attacker."""
    provider.people["attackers"] = ADA
    async with pages.stranger() as attacker:
        state = await there(attacker)
    for params in ({"state": state}, {"state": ""}, {}):
        await there(browser)
        answer = await browser.get("/sign-in/openid/back", params={"code": "attackers", **params})
        assert answer.status_code == 401
        assert SESSION.plain_name not in browser.cookies
    assert provider.people


@pytest.mark.parametrize("cookie", ["", "x", "W10=", "WzEsMiwzLDQsNV0=", "W" * 5_000])
async def test_a_cookie_that_is_none_signs_nobody_in(
    provider: FakeIdentityProvider, browser: httpx.AsyncClient, cookie: str
) -> None:
    browser.cookies.set(SIGN_IN_ATTEMPT.plain_name, cookie)
    answer = await browser.get("/sign-in/openid/back", params={"code": "c", "state": "1"})
    assert answer.status_code == 401


async def test_it_leads_to_no_other_site_and_shows_no_text_of_the_address(
    provider: FakeIdentityProvider, browser: httpx.AsyncClient
) -> None:
    provider.people["good"] = ADA
    state = await there(browser, "//evil.example")
    answer = await browser.get("/sign-in/openid/back", params={"code": "good", "state": state})
    assert "evil" not in answer.text
    state = await there(browser)
    query = {"error": "x", "error_description": "call this number", "state": state}
    answer = await browser.get("/sign-in/openid/back", params=query)
    assert answer.status_code == 401
    assert "call this" not in answer.text


async def test_another_sign_in_with_other_scopes_ends_the_earlier_sessions(
    pages: Pages, provider: FakeIdentityProvider, browser: httpx.AsyncClient
) -> None:
    async def sign_in(who: httpx.AsyncClient, identity: Identity) -> None:
        provider.people["code"] = identity
        await who.get("/sign-in/openid/back", params={"code": "code", "state": await there(who)})

    await sign_in(browser, ADA)
    async with pages.stranger() as second:
        await sign_in(second, ADA)
        assert (await browser.get("/builders")).status_code == 200
        await sign_in(second, replace(ADA, scopes=frozenset({Scope.READ})))
        assert (await browser.get("/builders")).status_code == 303
        assert (await second.get("/new")).status_code == 403


async def test_without_a_provider_there_is_no_such_page(pages: Pages, browser: httpx.AsyncClient) -> None:
    assert (await browser.get("/sign-in/openid")).status_code == 404
    assert "/sign-in/openid" not in (await browser.get("/sign-in")).text


def test_people_with_like_names_have_tokens_of_their_own() -> None:
    names = {replace(ADA, subject=one).token_name for one in ("a b", "ab", "a\tb", "a" * 80, "a" * 81)}
    assert len(names) == 5
    assert all(len(name) <= 100 for name in names)


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
