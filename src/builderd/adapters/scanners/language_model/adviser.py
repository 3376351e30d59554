"""The adviser: asks any OpenAI-compatible endpoint. It can only add holds; its failure is a hold too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from builderd.adapters.scanners.language_model.prompt import EDITION, Unusable, hits, questions, request
from builderd.domain.bundles import Bundle
from builderd.domain.review_policies import ReviewLimits
from builderd.domain.reviews import Hit
from builderd.domain.sources import Kind
from builderd.ports.scanners import NOTHING_RUN, Scan

#: An answer longer than this is none.
MAX_ANSWER = 1 << 20
#: Requests at the same time, over all reviews.
MAX_CALLS = 4


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``url`` is what ``/chat/completions`` is put behind; ``key`` is sent as a bearer token; ``timeout`` in seconds.

    The timeout is for all that is asked about one version.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 30


class LanguageModelAdviser:
    """Implements ``ports.scanners.Scanner``; only hits and failures of its scans are used."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._limit = asyncio.Semaphore(MAX_CALLS)
        headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=endpoint.timeout, trust_env=False)

    @property
    def name(self) -> str:
        return f"language model {self._endpoint.model} at {self._endpoint.url}, question {EDITION}"

    async def prepare(self) -> None:
        """There is nothing to be made warm."""

    async def scan(self, bundle: Bundle, limits: ReviewLimits, run: Mapping[str, Kind] = NOTHING_RUN) -> Scan:
        scanners = {"language model": self._endpoint.model}
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                found = await self._ask(bundle, run)
        except TimeoutError:
            return Scan((), {}, (), scanners, failure=f"did not answer within {self._endpoint.timeout:g} s")
        except Unusable as error:
            return Scan((), {}, (), scanners, failure=str(error))
        except Exception as error:  # any error: nothing passes then
            return Scan((), {}, (), scanners, failure=f"could not be asked ({type(error).__name__})")
        return Scan(tuple(found), {}, (), scanners)

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(self, bundle: Bundle, run: Mapping[str, Kind]) -> list[Hit]:
        asked = await asyncio.to_thread(questions, bundle, run)
        found: list[Hit] = []
        for message in asked.messages:
            async with self._limit:
                answer = await self._post(message)
            found += await asyncio.to_thread(hits, answer, bundle)
        if asked.unread:
            found.append(_unread(asked.unread, bundle))
        return found

    async def _post(self, message: str) -> bytes:
        url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        read = bytearray()
        async with self._http.stream("POST", url, json=request(self._endpoint.model, message)) as response:
            if response.status_code != 200:
                raise Unusable(f"answered {response.status_code}")
            async for piece in response.aiter_bytes():
                read += piece
                if len(read) > MAX_ANSWER:
                    raise Unusable("gave an answer that is too long")
        return bytes(read)


def _unread(paths: tuple[str, ...], bundle: Bundle) -> Hit:
    shown = ", ".join(paths[:5])[:300]
    message = f"{len(paths)} files are too large for the language model to read: {shown}"
    return Hit("LLM-unread", "", 0, "", bundle.hash, message, "Accept the finding with a reason, or make them smaller")
