"""A certificate authority by ACME (RFC 8555), with the library ``acme``, which blocks: its calls run in threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import josepy
import requests
from acme import challenges, client, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from builderd.domains.model import RATE_LIMITED
from builderd.previews.port import Certificate, OrderFailed, Publish

T = TypeVar("T")
_Kind = challenges.HTTP01 | challenges.DNS01

#: Seconds for one request, and for the authority's check and issue together.
REQUEST_TIMEOUT, ORDER_TIMEOUT = 30, 180
#: Pause after ``rateLimited`` without ``Retry-After``.
RATE_PAUSE = timedelta(hours=1)
#: Longest pause that an authority may ask for.
MAX_PAUSE = timedelta(days=7)
#: How long the directory is believed.
DIRECTORY_LIFE = timedelta(hours=1)
MAX_REASON = 500
#: Profile of certificates for IP addresses, where the authority has profiles (draft-aaron-acme-profiles).
SHORT_LIVED = "shortlived"
#: What the library, its transport and its parsers raise.
_FAILURES = (errors.Error, messages.Error, requests.exceptions.RequestException, josepy.errors.Error, ValueError)


@dataclass(frozen=True, slots=True)
class AcmeOptions:
    """Directory of the authority. ``roots``: PEM file of roots that sign its own certificate, in place of the usual.

    ``eab_key_id`` and ``eab_hmac_key`` bind the account to one at the authority (RFC 8555, 7.3.4).
    """

    directory: str
    contact: str | None = None
    roots: Path | None = None
    eab_key_id: str | None = None
    eab_hmac_key: str | None = None


class _Network(client.ClientNetwork):
    """Transport that remembers the last ``Retry-After``, which the library's errors lack."""

    retry_after: str | None = None

    def _send_request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:
        response = super()._send_request(method, url, *args, **kwargs)
        self.retry_after = response.headers.get("Retry-After")
        return response


class AcmeAuthority:
    """Implements ``ports.previews.CertificateAuthority``.

    Each order has a connection of its own, so that one which takes long keeps no other waiting.
    """

    def __init__(self, options: AcmeOptions) -> None:
        self._options = options
        self._registering = threading.Lock()
        #: The key and its account, once it is registered.
        self._account: tuple[bytes, messages.RegistrationResource] | None = None
        self._directory: tuple[datetime, messages.Directory] | None = None

    def new_account_key(self) -> bytes:
        return _private_pem(ec.generate_private_key(ec.SECP256R1()))

    async def issue(self, account_key: bytes, host: str, publish: Publish) -> Certificate:
        return await self._issue(account_key, (host,), challenges.HTTP01, publish)

    async def issue_by_dns(self, account_key: bytes, names: Sequence[str], publish: Publish) -> Certificate:
        return await self._issue(account_key, tuple(names), challenges.DNS01, publish)

    async def _issue(
        self,
        account_key: bytes,
        names: tuple[str, ...],
        kind: type[challenges.HTTP01] | type[challenges.DNS01],
        publish: Publish,
    ) -> Certificate:
        account = JWKEC.load(account_key)
        assert isinstance(account, JWKEC)
        key, network = ec.generate_private_key(ec.SECP256R1()), self._network(account)
        opened, order = await _call(network, lambda: self._new_order(account_key, network, names, _request(names, key)))
        answers = await _call(network, lambda: list(_answers(opened, order, kind)))
        for place, answer, _ in answers:
            await publish(place, answer)
        chain = await _call(network, lambda: _finish(opened, order, [objects for *_, objects in answers]))
        pem = _joined(chain, _private_pem(key).decode())
        leaf = x509.load_pem_x509_certificate(chain.encode())
        renewal = await self.suggested_renewal(pem)
        return Certificate(pem, leaf.not_valid_before_utc, leaf.not_valid_after_utc, renewal)

    async def suggested_renewal(self, pem: str) -> datetime | None:
        try:
            return await asyncio.to_thread(self._suggested_renewal, pem)
        except _FAILURES:
            return None

    async def identities(self) -> frozenset[str]:
        try:
            return await asyncio.to_thread(self._identities)
        except _FAILURES:
            return frozenset()

    def _new_order(
        self, account_key: bytes, network: _Network, names: tuple[str, ...], request: bytes
    ) -> tuple[client.ClientV2, messages.OrderResource]:
        opened = client.ClientV2(self._known_directory(), network)
        with self._registering:
            if self._account is None or self._account[0] != account_key:
                self._account = account_key, self._register(opened)
        network.account = self._account[1]
        try:
            return opened, opened.new_order(request, self._profile(names))
        except messages.Error as error:
            if error.code == "accountDoesNotExist":
                self._account = None  # the next order registers the key again
            raise

    def _profile(self, names: tuple[str, ...]) -> str | None:
        """Return the profile for these names: authorities certify addresses for some days only."""
        if not any(isinstance(_general_name(name), x509.IPAddress) for name in names):
            return None
        return SHORT_LIVED if SHORT_LIVED in (self._known_directory().meta.profiles or {}) else None

    def _register(self, opened: client.ClientV2) -> messages.RegistrationResource:
        """Register the key, or find the account that it has."""
        key = opened.net.key
        assert isinstance(key, JWKEC)
        try:
            return opened.new_account(self._registration(opened, key))
        except errors.ConflictError as known:
            return messages.RegistrationResource(uri=known.location, body=messages.Registration())

    def _registration(self, opened: client.ClientV2, key: JWKEC) -> messages.NewRegistration:
        options, binding = self._options, None
        if options.eab_key_id and options.eab_hmac_key:
            binding = messages.ExternalAccountBinding.from_data(
                key.public_key(), options.eab_key_id, options.eab_hmac_key, opened.directory
            )
        return messages.NewRegistration.from_data(
            email=options.contact, terms_of_service_agreed=True, external_account_binding=binding
        )

    def _network(self, key: JWKEC | None) -> _Network:
        network = _Network(key, alg=ES256, user_agent="builderd", timeout=REQUEST_TIMEOUT)
        # A path to roots is what ``requests`` takes here, too.
        network.verify_ssl = str(self._options.roots) if self._options.roots else True  # type: ignore[assignment]
        return network

    def _suggested_renewal(self, pem: str) -> datetime | None:
        directory = self._known_directory()
        if "renewalInfo" not in directory.to_partial_json():
            return None
        time, _ = client.ClientV2(directory, self._network(None)).renewal_time(pem.encode())
        return None if time is None else time if time.tzinfo else time.replace(tzinfo=UTC)

    def _identities(self) -> frozenset[str]:
        meta = self._known_directory().to_partial_json().get("meta", {})
        names = meta.to_partial_json() if hasattr(meta, "to_partial_json") else meta
        return frozenset(str(name).lower() for name in names.get("caaIdentities", ()))

    def _known_directory(self) -> messages.Directory:
        now = datetime.now(UTC)
        if self._directory is None or now - self._directory[0] > DIRECTORY_LIFE:
            self._directory = now, client.ClientV2.get_directory(self._options.directory, self._network(None))
        return self._directory[1]


async def _call(network: _Network, call: Callable[[], T]) -> T:
    """Run a call in a thread. Raises ``OrderFailed`` with the authority's own words."""
    try:
        return await asyncio.to_thread(call)
    except _FAILURES as error:
        raise OrderFailed(_reason(error), _wait(network, error)) from error


def _answers(
    opened: client.ClientV2, order: messages.OrderResource, kind: type[challenges.HTTP01] | type[challenges.DNS01]
) -> Iterator[tuple[str, str, tuple[Any, Any]]]:
    """Yield where each answer is published (token, or record), the answer, and the library's own objects of it."""
    key = opened.net.key
    assert key is not None
    for authorization in order.authorizations:
        if authorization.body.status == messages.STATUS_VALID:
            continue
        offered = [one for one in authorization.body.challenges if isinstance(one.chall, kind)]
        if not offered:
            raise errors.Error(f"the authority offers no challenge {kind.typ} for this name")
        response, answer = offered[0].response_and_validation(key)
        yield _place(offered[0].chall, authorization.body.identifier.value), answer, (offered[0], response)


def _place(challenge: _Kind, name: str) -> str:
    if isinstance(challenge, challenges.DNS01):
        return str(challenge.validation_domain_name(name))
    return str(challenge.encode("token"))


def _finish(opened: client.ClientV2, order: messages.OrderResource, answers: list[tuple[Any, Any]]) -> str:
    for challenge, response in answers:
        opened.answer_challenge(challenge, response)
    # The library compares with its own naive local time.
    deadline = datetime.now() + timedelta(seconds=ORDER_TIMEOUT)
    chain: str = opened.poll_and_finalize(order, deadline).fullchain_pem
    return chain


def _wait(network: _Network, error: Exception) -> timedelta | None:
    """Return the pause that the authority asked for: by ``Retry-After``, or by ``rateLimited`` alone."""
    if not (isinstance(error, messages.Error) and error.code == RATE_LIMITED):
        return None
    return _pause(network.retry_after) or RATE_PAUSE


def _pause(text: str | None) -> timedelta | None:
    """Parse ``Retry-After``: seconds or a date (RFC 9110, 10.2.3)."""
    if not text:
        return None
    try:
        if text.strip().isdecimal():
            return min(timedelta(seconds=int(text)), MAX_PAUSE)
        return min(max(parsedate_to_datetime(text) - datetime.now(UTC), timedelta(0)), MAX_PAUSE)
    except (ValueError, OverflowError, TypeError):
        return None


def _reason(error: Exception) -> str:
    """Return what the authority says, without addresses of its own interface."""
    if isinstance(error, errors.ValidationError):
        told = [
            f"{challenge.error.code}: {challenge.error.detail}"
            for authorization in error.failed_authzrs
            for challenge in authorization.body.challenges
            if challenge.error is not None
        ]
        text = f"the authority could not verify the name: {'; '.join(told) or 'it does not say why'}"
    elif isinstance(error, messages.Error):
        text = f"the authority refused the order: {error.code}: {error.detail}"
    elif isinstance(error, errors.TimeoutError):
        text = f"the authority did not finish the order within {ORDER_TIMEOUT} s"
    elif isinstance(error, requests.exceptions.RequestException):
        text = f"the authority does not answer: {type(error).__name__}"
    else:
        text = f"the authority gave an answer that is none: {type(error).__name__}"
    return "".join(character if character.isprintable() else " " for character in text)[:MAX_REASON]


def _request(hosts: tuple[str, ...], key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    return (
        builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _joined(*parts: str) -> str:
    """Join PEM texts without empty lines, which would end HAProxy's payload."""
    return "".join(f"{line}\n" for part in parts for line in part.splitlines() if line.strip())
