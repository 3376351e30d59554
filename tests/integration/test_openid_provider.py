"""Signing in with a real OpenID provider: npm's oidc-provider, which the test fetches and starts."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which

import httpx
import pytest
from playwright.async_api import async_playwright
from tests.service import listening, running_service

from builderd.core.errors import Unauthenticated
from builderd.server.meter import Meter
from builderd.tokens.model import Attempt, Scope
from builderd.tokens.openid import OpenIdOptions, OpenIdProvider
from builderd.web.app import Site, create_web
from builderd.web.policy import SESSION

PACKAGE = "oidc-provider@9.13.3"
BACK = "http://127.0.0.1:9/sign-in/openid/back"
SECRET = "a secret: with/odd+signs"
SCRIPT = """\
import { Provider } from "oidc-provider";
const [port, redirect, secret] = process.argv.slice(2);
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{ client_id: "builderd", client_secret: secret, redirect_uris: [redirect] }],
  claims: { openid: ["sub", "builderd_tenant", "builderd_scope"] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true } },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, builderd_tenant: "acme", builderd_scope: ["write"] }),
  }),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("listening"));
"""
#: Seconds; against hanging only.
PATIENCE = 300


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the provider."""
    if which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("oidc")
    (folder / "provider.mjs").write_text(SCRIPT)
    words = ["npm", "install", PACKAGE, "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
    return folder


@contextmanager
def started(folder: Path, back: str) -> Iterator[str]:
    """Start the provider for one redirect URI, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["node", "provider.mjs", str(port), back, SECRET]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "listening\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def issuer(installed: Path) -> Iterator[str]:
    with started(installed, BACK) as url:
        yield url


async def code_of(url: str) -> httpx.QueryParams:
    """Sign in at the provider as a person would; return what it sends back."""
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as browser:
        answer = await browser.get(url)
        for _ in range(12):
            if answer.status_code in (302, 303):
                target = answer.url.join(answer.headers["location"])
                if str(target).startswith(BACK):
                    return target.params
                answer = await browser.get(target)
                continue
            action, prompt = (re.search(f'{name}="([^"]+)"', answer.text) for name in ("action", 'name="prompt" value'))
            assert action, answer.text
            assert prompt, answer.text
            form = {"prompt": prompt[1], "login": "ada", "password": "x"}
            answer = await browser.post(answer.url.join(action[1]), data=form)
    raise AssertionError("the provider sent nobody back")


@pytest.mark.slow
async def test_a_person_signs_in_once_with_each_code(issuer: str) -> None:
    provider = OpenIdProvider(OpenIdOptions(issuer, "builderd", SECRET))
    attempt = Attempt("s" * 43, "n" * 43, "v" * 64, BACK)
    sent = await code_of(await provider.url(attempt))
    assert sent["state"] == attempt.state
    identity = await provider.identity(sent["code"], attempt)
    assert (identity.subject, identity.tenant) == ("ada", "acme")
    assert identity.scopes == {Scope.WRITE}
    for code in (sent["code"], "wrong"):
        with pytest.raises(Unauthenticated):
            await provider.identity(code, attempt)


@pytest.mark.slow
@pytest.mark.root
async def test_a_person_signs_in_through_a_browser(installed: Path) -> None:
    """Go from the pages to the provider at another site, and back with cookies as Chromium keeps them."""
    async with running_service() as service, async_playwright() as playwright:
        web = create_web(service.app.state.operations, meter=Meter())
        async with listening(Site(service.app, web)) as address:  # type: ignore[arg-type]
            root = address.replace("127.0.0.1", "localhost")
            browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            try:
                with started(installed, f"{root}/sign-in/openid/back") as issuer:
                    provider = OpenIdProvider(OpenIdOptions(issuer, "builderd", SECRET))
                    web.state.application = replace(service.application, identity_provider=provider)
                    context = await browser.new_context()
                    page = await context.new_page()
                    page.set_default_timeout(PATIENCE * 1_000)
                    await page.goto(f"{root}/tokens")
                    await page.click("a[href^='/sign-in/openid']")
                    await page.fill("[name=login]", "ada")
                    await page.fill("[name=password]", "x")
                    await page.click("button[type=submit]")
                    await page.click("button[type=submit]")  # consent
                    await page.wait_for_url(f"{root}/tokens")
                    assert "sso ada" in await page.inner_text("body")
                    cookies = {one["name"]: one for one in await context.cookies(root)}
                    assert list(cookies) == [SESSION.plain_name]
                    assert (cookies[SESSION.plain_name]["sameSite"], cookies[SESSION.plain_name]["httpOnly"]) == (
                        "Strict",
                        True,
                    )
            finally:
                # Before the listener ends: it waits for the streams of open pages.
                await browser.close()
