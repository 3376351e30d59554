"""Signing in with a real OpenID provider: npm's oidc-provider, which the test fetches and starts."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from shutil import which

import httpx
import pytest

from builderd.adapters.identity.openid import OpenIdOptions, OpenIdProvider
from builderd.domain.errors import Unauthenticated
from builderd.domain.identities import Attempt
from builderd.domain.tokens import Scope

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
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("oidc")
    (folder / "provider.mjs").write_text(SCRIPT)
    words = ["npm", "install", PACKAGE, "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=PATIENCE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["node", "provider.mjs", str(port), BACK, SECRET]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "listening\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


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
