"""Connections to a service: which calls are sent again, and after how long; certificates and proxies."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx2

from builderd.client.errors import ApiError, BuilderdError, Conflict, NoAnswer, NoCapacity, RateLimited, Unavailable

#: Methods whose repetition changes nothing (RFC 9110, 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
#: A longer ``Retry-After`` is the caller's to wait for.
LONGEST_WAIT = 60.0
#: A longer ``Retry-After`` of ``NoCapacity`` is the caller's to wait for: a full machine has no room in a minute,
#: unless a person makes some.
LONGEST_WAIT_FOR_ROOM = 10.0
FIRST_WAIT, MOST_WAIT = 0.5, 8.0

#: The request has not left: it can be sent again, whatever it does.
NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Retry:
    """A call that is sent again after a wait.

    ``error`` is why, ``attempt`` counts from 1, ``seconds`` is how long the wait takes that begins now.
    """

    method: str
    path: str
    error: BuilderdError
    attempt: int
    seconds: float


#: Called before each wait.
OnRetry = Callable[[Retry], None]


def ignore_retry(_: Retry) -> None:
    """Wait without a word."""


def new_key() -> str:
    """Return an ``Idempotency-Key`` of its own."""
    return str(uuid.uuid4())


def repeats_error(error: BuilderdError, most: float | None = None) -> bool:
    """Return whether time helps against an answer: 429 and 503 that say so.

    Not where it takes longer than ``most`` seconds, which are left.
    """
    if not isinstance(error, RateLimited | Unavailable) or error.retry_after is None:
        return False
    longest = LONGEST_WAIT_FOR_ROOM if isinstance(error, NoCapacity) else LONGEST_WAIT
    return error.retry_after <= (longest if most is None else min(longest, most))


def ended_by_machine(error: BuilderdError) -> bool:
    """Return whether a deployment began and failed by a fault of the machine: its key has this outcome for good.

    Such an answer names the version that failed. Others may be about a builder too, and are not the last one.
    """
    return isinstance(error, Unavailable) and error.builder is not None and "version" in error.data


def repeats_failure(error: httpx2.TransportError, *, repeatable: bool) -> bool:
    """Return whether a call is sent again after a broken connection."""
    return repeatable or isinstance(error, NOT_SENT)


def is_going_on(error: BuilderdError) -> bool:
    """Return whether the first call with this ``Idempotency-Key`` has no outcome yet."""
    return isinstance(error, Conflict) and error.code == "conflict" and error.retry_after is not None


def wait_before(attempt: int, error: BuilderdError | None = None) -> float:
    """Return the seconds before a retry: those of ``Retry-After``, else doubled each time, with a random part."""
    if isinstance(error, ApiError) and error.retry_after is not None:
        return error.retry_after
    return min(FIRST_WAIT * float(2**attempt), MOST_WAIT) * random.uniform(0.75, 1)  # noqa: S311


def no_answer(method: str, path: str, error: Exception) -> NoAnswer:
    """Return the error of a broken connection."""
    return NoAnswer(f"{method} {path}: {str(error) or type(error).__name__}")


LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def is_loopback(url: str) -> bool:
    """Return whether a service is on this machine: it is reached without the environment's proxies."""
    return urlsplit(url).hostname in LOOPBACK


def certificates(url: str, ca: str | Path | None) -> ssl.SSLContext | bool:
    """Return the certificates of ``SSL_CERT_FILE`` or else the system's, and those of ``ca``; True without TLS.

    Those of the environment are used for a connection to this machine, too.
    """
    if ca is None and not url.startswith("https:"):
        return True
    context = httpx2.create_ssl_context(trust_env=True)
    if ca is not None:
        context.load_verify_locations(cafile=str(ca))
    return context


P = ParamSpec("P")
T = TypeVar("T")

async_sleep = asyncio.sleep
sleep = time.sleep


async def in_thread(call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run blocking work, such as packing a folder, beside the event loop."""
    return await asyncio.to_thread(call, *args, **options)


def at_once(call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run blocking work."""
    return call(*args, **options)
