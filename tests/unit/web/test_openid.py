"""Signing in with an identity provider: the way there and back, and who may not come back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from tests.fakes.identity import FakeIdentityProvider
from tests.unit.web.conftest import Pages

from builderd.domain.tokens import Identity, Scope
from builderd.web.policy import PLAIN_ATTEMPT, PLAIN_NAME

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
    session = next(one for one in answer.headers.get_list("set-cookie") if one.startswith(PLAIN_NAME))
    assert "SameSite=strict" in session
    assert PLAIN_ATTEMPT not in browser.cookies
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
        assert PLAIN_NAME not in browser.cookies
    assert provider.people


@pytest.mark.parametrize("cookie", ["", "x", "W10=", "WzEsMiwzLDQsNV0=", "W" * 5_000])
async def test_a_cookie_that_is_none_signs_nobody_in(
    provider: FakeIdentityProvider, browser: httpx.AsyncClient, cookie: str
) -> None:
    browser.cookies.set(PLAIN_ATTEMPT, cookie)
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
