from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest
from starlette.applications import Starlette
from tests.service import MINIMAL, Service, running_service

from builderd.server.meter import Meter
from builderd.tokens.model import Scope
from builderd.web.app import Site, create_web
from builderd.web.policy import SESSION

ORIGIN = "http://builderd"


@dataclass(slots=True)
class Pages:
    """The pages of a service on fakes, and a browser that is signed in."""

    service: Service
    web: Starlette
    browser: httpx.AsyncClient

    def stranger(self) -> httpx.AsyncClient:
        """Return another browser, without a session."""
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(Site(self.service.app, self.web)),
            base_url=ORIGIN,
            headers={"Origin": ORIGIN},
            timeout=30,
            trust_env=False,
        )

    async def sign_in(self, browser: httpx.AsyncClient, secret: str) -> httpx.Response:
        return await browser.post("/sign-in", data={"token": secret})

    async def create(self, name: str = "my-api", **more: object) -> str:
        """Create a builder by the API and return its uuid."""
        answer = await self.service.client(self.service.write).post(
            "/api/v1/builders", json={**MINIMAL, "name": name, **more}
        )
        assert answer.status_code == 201, answer.text
        uuid: str = answer.json()["data"]["uuid"]
        return uuid


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    async with running_service() as service:
        web = create_web(service.app.state.operations, meter=Meter())
        found = Pages(service, web, httpx.AsyncClient())
        async with found.stranger() as browser:
            found.browser = browser
            secret = await service.token("acme", Scope.ADMIN, Scope.OPERATOR)
            answer = await found.sign_in(browser, secret)
            assert answer.status_code == 303
            assert SESSION.plain_name in browser.cookies
            yield found
