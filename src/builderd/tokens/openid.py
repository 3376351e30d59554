"""OpenID Connect (Core 1.0, Discovery 1.0): the authorization code flow with PKCE (RFC 7636).

The provider's address is the operator's; what comes by way of the browser is hostile. An ID token counts only with a
signature by one of the provider's published asymmetric keys, and for this client and this very attempt.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import jwt

from builderd.core.errors import MachineFault, Unauthenticated
from builderd.tokens.model import Attempt, ClaimRules, Identity, identity_of

#: Asymmetric ones alone: tokens with a symmetric signature or none could be made by others than the provider.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
TIMEOUT = 10.0
MAX_ANSWER = 262_144
#: Seconds for which the provider's document and keys are kept; least seconds between two looks for a new key.
KEPT, KEY_INTERVAL = 3600.0, 60.0
#: Seconds by which the two machines' clocks may differ.
LEEWAY = 30
#: Requests to the provider at a time; sign-ins beyond wait.
CONCURRENT = 8
MAX_SUBJECT = 255
_WRONG = "The identity provider's answer is not valid for this sign-in: try again."


@dataclass(frozen=True, slots=True)
class OpenIdOptions:
    """``issuer`` as the provider writes it; ``secret`` None for a public client."""

    issuer: str
    client_id: str
    secret: str | None = field(default=None, repr=False)
    scope: str = "openid"
    name: str = "single sign-on"
    claims: ClaimRules = field(default_factory=ClaimRules)


class OpenIdProvider:
    """Implements ``ports.outside.IdentityProvider``. ``transport`` replaces the network in tests."""

    def __init__(self, options: OpenIdOptions, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._options = options
        self._transport = transport
        self._places = asyncio.Semaphore(CONCURRENT)
        self._lock = asyncio.Lock()
        self._document: Mapping[str, Any] = {}
        self._keys: Mapping[str, Any] = {}
        self._document_at = self._keys_at = float("-inf")

    @property
    def name(self) -> str:
        return self._options.name

    async def url(self, attempt: Attempt) -> str:
        document = await self._discovered()
        endpoint = self._endpoint(document, "authorization_endpoint")
        challenge = urlsafe_b64encode(sha256(attempt.verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._options.client_id,
            "redirect_uri": attempt.redirect_uri,
            "scope": self._options.scope,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"

    async def identity(self, code: str, attempt: Attempt) -> Identity:
        document = await self._discovered()
        answer = await self._redeemed(self._endpoint(document, "token_endpoint"), code, attempt)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise Unauthenticated(_WRONG)
        return identity_of(await self._verified(token, attempt.nonce), self._options.claims)

    async def _redeemed(self, endpoint: str, code: str, attempt: Attempt) -> Mapping[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": attempt.redirect_uri,
            "code_verifier": attempt.verifier,
        }
        headers = {}
        client, secret = self._options.client_id, self._options.secret
        if secret is None:
            form["client_id"] = client
        else:
            pair = f"{quote(client, safe='')}:{quote(secret, safe='')}"  # RFC 6749, 2.3.1
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        status, answer = await self._asked("POST", endpoint, headers, form)
        if status == 200:
            return answer
        if answer.get("error") == "invalid_grant":
            raise Unauthenticated("The identity provider's code is spent or too old: sign in again.")
        raise MachineFault(f"The identity provider refuses this service ({status}): see the settings openid.*.")

    async def _verified(self, token: str, nonce: str) -> Mapping[str, Any]:
        """Return the claims of an ID token that is valid for this attempt. Raises ``Unauthenticated``."""
        try:
            key = await self._key(jwt.get_unverified_header(token))
            claims: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                audience=self._options.client_id,
                issuer=self._options.issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated(_WRONG) from error
        audience, subject, given = claims["aud"], claims["sub"], claims.get("nonce")
        is_others = isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != self._options.client_id
        is_named = isinstance(subject, str) and 0 < len(subject) <= MAX_SUBJECT
        is_asked = isinstance(given, str) and hmac.compare_digest(given.encode(), nonce.encode())
        if is_others or not is_named or not is_asked:
            raise Unauthenticated(_WRONG)
        return claims

    async def _key(self, header: Mapping[str, Any]) -> jwt.PyJWK:
        """Return the provider's key that the token names. Raises ``PyJWTError``."""
        if header.get("alg") not in ALGORITHMS:
            raise jwt.InvalidAlgorithmError("not an asymmetric signature")
        async with self._lock:
            age = time.monotonic() - self._keys_at
            found = self._found(header)
            if age > KEPT or (not found and age > KEY_INTERVAL):
                document = await self._discovered()
                _, self._keys = await self._asked("GET", self._endpoint(document, "jwks_uri"))
                self._keys_at = time.monotonic()
                found = self._found(header)
        if len(found) != 1:
            raise jwt.InvalidKeyError("not one of the provider's keys")
        return jwt.PyJWK(found[0], header["alg"])

    def _found(self, header: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the signature keys of the header's id, or all of them where it names none."""
        keys = self._keys.get("keys")
        usable = [one for one in keys if isinstance(one, dict)] if isinstance(keys, list) else []
        return [
            one
            for one in usable
            if one.get("use", "sig") == "sig"
            and one.get("kty") in ("RSA", "EC", "OKP")
            and one.get("alg", header["alg"]) == header["alg"]
            and ("kid" not in header or one.get("kid") == header["kid"])
        ]

    async def _discovered(self) -> Mapping[str, Any]:
        """Return the provider's document, which must name itself as the issuer."""
        if time.monotonic() - self._document_at > KEPT:
            issuer = self._options.issuer
            _, document = await self._asked("GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
            if document.get("issuer") != issuer:
                raise MachineFault(f"The identity provider calls itself {document.get('issuer')!r}, not {issuer!r}.")
            self._document, self._document_at = document, time.monotonic()
        return self._document

    def _endpoint(self, document: Mapping[str, Any], name: str) -> str:
        """Return an endpoint of the document: over TLS, unless the issuer itself is without."""
        url = document.get(name)
        schemes = {"https", urlsplit(self._options.issuer).scheme}
        if not isinstance(url, str) or urlsplit(url).scheme not in schemes:
            raise MachineFault(f"The identity provider's document has no usable {name}.")
        return url

    async def _asked(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, form: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, Any]]:
        """Return status and JSON object of an answer, in bounded time and size. Raises ``MachineFault``."""
        client = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, transport=self._transport)
        try:
            async with (
                self._places,
                asyncio.timeout(TIMEOUT),
                client,
                client.stream(
                    method, url, headers={"Accept": "application/json", **(headers or {})}, data=form
                ) as response,
            ):
                body = b""
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > MAX_ANSWER:
                        raise MachineFault("The identity provider's answer is too long.")
                answer = json.loads(body)
        except (httpx.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            reason = f"{type(error).__name__} {error}".strip()
            raise MachineFault(f"The identity provider does not answer: {reason}", retry_after=5) from error
        if not isinstance(answer, dict) or (method == "GET" and response.status_code != 200):
            raise MachineFault(f"The identity provider answers {response.status_code} at {url}.", retry_after=5)
        return response.status_code, answer
