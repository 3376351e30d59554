"""Sessions over HTTP: the cookie, guesses, links, and their end."""

from __future__ import annotations

import pytest
from tests.unit.web.conftest import ORIGIN, Pages

from builderd.domain.tokens import Scope
from builderd.services import sessions
from builderd.web.policy import PLAIN_NAME, SECURE_NAME


async def test_the_cookie_is_kept_from_scripts_and_other_sites(pages: Pages) -> None:
    async with pages.stranger() as browser:
        answer = await pages.sign_in(browser, pages.service.read)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{PLAIN_NAME}=bdw_")
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/"))
    assert "Domain" not in cookie


async def test_under_tls_the_cookie_is_bound_to_this_host(pages: Pages) -> None:
    async with pages.stranger() as browser:
        browser.base_url = "https://builderd"
        browser.headers["Origin"] = "https://builderd"
        cookie = (await pages.sign_in(browser, pages.service.read)).headers["set-cookie"]
    assert cookie.startswith(f"{SECURE_NAME}=")
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
    secret = pages.browser.cookies[PLAIN_NAME]
    async with pages.stranger() as browser:
        for cookie in (f"{PLAIN_NAME}=bdw_planted; {PLAIN_NAME}={secret}", f"{PLAIN_NAME}={secret}; {PLAIN_NAME}=x"):
            assert (await browser.get("/builders", headers={"Cookie": cookie})).status_code == 303
        assert (await browser.get("/builders", headers={"Cookie": f"{PLAIN_NAME}={secret}"})).status_code == 200


async def test_signing_out_ends_the_session_for_copies_of_its_cookie(pages: Pages) -> None:
    secret = pages.browser.cookies[PLAIN_NAME]
    answer = await pages.browser.post("/sign-out")
    assert answer.headers["location"] == "/sign-in?done=signed-out"
    async with pages.stranger() as browser:
        assert (await browser.get("/builders", headers={"Cookie": f"{PLAIN_NAME}={secret}"})).status_code == 303


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
    secret = pages.browser.cookies[PLAIN_NAME]
    assert (await pages.browser.get("/api/v1/builders")).status_code == 401
    async with pages.stranger() as browser:
        bearer = {"Authorization": f"Bearer {secret}"}
        assert (await browser.get("/api/v1/builders", headers=bearer)).status_code == 401
        bearer = {"Authorization": f"Bearer {pages.service.write}"}
        assert (await browser.get("/builders", headers=bearer)).status_code == 303
