"""An OpenID provider whose tokens are hostile in every way: none of them signs anybody in."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from builderd.core.errors import MachineFault, Unauthenticated
from builderd.tokens.model import Attempt, Scope
from builderd.tokens.openid import OpenIdOptions, OpenIdProvider

ISSUER = "https://id.example"
ATTEMPT = Attempt("state", "nonce", "verifier", "https://builderd.example/sign-in/openid/back")
KEY, OTHER_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))
CURVE = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, kid: str, algorithm: Any, **more: str) -> dict[str, Any]:
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, **more}


RSA_JWK = public(KEY, "one", jwt.algorithms.RSAAlgorithm, use="sig", alg="RS256")
EC_JWK = public(CURVE, "two", jwt.algorithms.ECAlgorithm, use="sig")


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    given = {
        "iss": ISSUER,
        "aud": "client",
        "sub": "ada",
        "nonce": "nonce",
        "iat": now,
        "exp": now + 300,
        "builderd_tenant": "acme",
        "builderd_scope": ["write", "operator", "unknown"],
        **changed,
    }
    return {name: value for name, value in given.items() if value is not None}


def signed(key: Any = KEY, algorithm: str = "RS256", kid: str | None = "one", **changed: Any) -> str:
    return jwt.encode(claims(**changed), key, algorithm, {"kid": kid} if kid else {})


class Provider:
    """Answers of a provider; ``token`` is the ID token that it hands out."""

    def __init__(self, token: str = "", **document: Any) -> None:
        self.token, self.document, self.keys = token, document, [RSA_JWK, EC_JWK]
        self.asked: list[httpx.Request] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        match request.url.path:
            case "/.well-known/openid-configuration":
                urls = {
                    "authorization_endpoint": f"{ISSUER}/authorize",
                    "token_endpoint": f"{ISSUER}/token",
                    "jwks_uri": f"{ISSUER}/keys",
                }
                return httpx.Response(200, json={"issuer": ISSUER, **urls, **self.document})
            case "/keys":
                return httpx.Response(200, json={"keys": self.keys})
            case "/token":
                return httpx.Response(200, json={"id_token": self.token})
        return httpx.Response(404, json={})

    def client(self, secret: str | None = "s ecret") -> OpenIdProvider:
        return OpenIdProvider(OpenIdOptions(ISSUER, "client", secret), httpx.MockTransport(self.answer))


async def test_a_person_is_known_by_the_claims_of_a_valid_token() -> None:
    for token in (signed(), signed(CURVE, "ES256", "two"), signed(aud=["client"])):
        identity = await Provider(token).client().identity("code", ATTEMPT)
        assert (identity.subject, identity.tenant) == ("ada", "acme")
        assert identity.scopes == {Scope.WRITE}, "operator is granted on the machine alone"


async def test_the_browser_is_sent_with_state_nonce_and_a_challenge() -> None:
    query = parse_qs(urlsplit(await Provider().client().url(ATTEMPT)).query)
    assert query["state"] == ["state"]
    assert query["nonce"] == ["nonce"]
    assert query["code_challenge_method"] == ["S256"]
    assert "verifier" not in str(query["code_challenge"])


async def test_the_code_is_redeemed_with_the_verifier_and_the_clients_secret() -> None:
    provider = Provider(signed())
    await provider.client().identity("code", ATTEMPT)
    (request,) = (one for one in provider.asked if one.url.path == "/token")
    form = parse_qs(request.content.decode())
    assert (form["code"], form["code_verifier"]) == (["code"], ["verifier"])
    assert request.headers["authorization"] == "Basic Y2xpZW50OnMlMjBlY3JldA=="


def unsigned() -> str:
    return jwt.encode(claims(), "", "none", {"kid": "one"})


def by_the_public_key() -> str:
    """A token signed by HMAC, with the provider's public key as the secret."""
    import base64
    import hashlib
    import hmac

    def packed(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    body = packed({"alg": "HS256", "kid": "one"}) + b"." + packed(claims())
    secret = json.dumps(RSA_JWK).encode()
    mac = base64.urlsafe_b64encode(hmac.new(secret, body, hashlib.sha256).digest()).rstrip(b"=")
    return (body + b"." + mac).decode()


HOSTILE: dict[str, Callable[[], str]] = {
    "another issuer": lambda: signed(iss="https://evil.example"),
    "another audience": lambda: signed(aud="another"),
    "several audiences, for another party": lambda: signed(aud=["client", "another"], azp="another"),
    "several audiences, for no party": lambda: signed(aud=["client", "another"]),
    "another nonce": lambda: signed(nonce="another"),
    "no nonce": lambda: signed(nonce=None),
    "a nonce that is no text": lambda: signed(nonce=["nonce"]),
    "expired": lambda: signed(exp=int(time.time()) - 120),
    "no expiry": lambda: signed(exp=None),
    "of the future": lambda: signed(iat=int(time.time()) + 3_600),
    "no subject": lambda: signed(sub=None),
    "an empty subject": lambda: signed(sub=""),
    "a long subject": lambda: signed(sub="a" * 300),
    "alg none": unsigned,
    "the public key as a secret": by_the_public_key,
    "the client's secret": lambda: signed("s ecret" * 8, "HS256"),
    "another key": lambda: signed(OTHER_KEY),
    "an unknown key": lambda: signed(OTHER_KEY, kid="three"),
    "no key id, where there are several": lambda: signed(CURVE, "ES256", None) + "x",
    "a key of another kind": lambda: signed(CURVE, "ES256", "one"),
    "no tenant": lambda: signed(builderd_tenant=None),
    "a tenant that is no name": lambda: signed(builderd_tenant="../acme"),
    "a tenant that is no text": lambda: signed(builderd_tenant=["acme"]),
    "no scope": lambda: signed(builderd_scope=None),
    "operator alone": lambda: signed(builderd_scope="operator"),
    "no token": lambda: "x",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_token_signs_nobody_in(name: str) -> None:
    with pytest.raises(Unauthenticated):
        await Provider(HOSTILE[name]()).client().identity("code", ATTEMPT)


async def test_a_provider_of_another_name_or_without_tls_is_not_used() -> None:
    for document in ({"issuer": "https://evil.example"}, {"token_endpoint": "http://id.example/token"}):
        with pytest.raises(MachineFault):
            await Provider(signed(), **document).client().identity("code", ATTEMPT)


async def test_unknown_keys_do_not_make_the_service_ask_again_and_again() -> None:
    provider = Provider(signed(OTHER_KEY, kid="three"))
    client = provider.client()
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await client.identity("code", ATTEMPT)
    assert sum(one.url.path == "/keys" for one in provider.asked) == 1


async def test_a_provider_that_fails_is_a_fault_of_the_machine() -> None:
    def failing(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"[" * 300_000)

    with pytest.raises(MachineFault):
        await OpenIdProvider(OpenIdOptions(ISSUER, "client"), httpx.MockTransport(failing)).url(ATTEMPT)
