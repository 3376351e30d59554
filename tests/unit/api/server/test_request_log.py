"""Every request has an id and a line in the log; nothing from outside breaks out of either."""

from __future__ import annotations

import logging
import re

import httpx
import pytest
from tests.service import MINIMAL, Service

from builderd.api.server.answers import RequestIdFilter

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def test_every_answer_has_an_id_of_its_own(client: httpx.AsyncClient) -> None:
    ids = [(await client.get(path)).headers["x-request-id"] for path in ("/healthz", "/nope", "/api/v1/builders")]
    assert len(set(ids)) == 3
    assert all(UUID.fullmatch(one) for one in ids)


@pytest.mark.parametrize("given", ["a", "my-id_1.2:3", "f" * 128])
async def test_a_sane_id_from_outside_is_kept(client: httpx.AsyncClient, given: str) -> None:
    assert (await client.get("/healthz", headers={"X-Request-Id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "-a", "f" * 129, "a b", "a\tb", "<script>", "ä", 'a"b', "a;b"])
async def test_any_other_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    headers = [(b"X-Request-Id", given.encode())]
    assert UUID.fullmatch((await client.get("/healthz", headers=headers)).headers["x-request-id"])


async def test_lines_of_the_log_carry_the_id(client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(RequestIdFilter())
    with caplog.at_level(logging.INFO, "builderd.api"):
        await client.get("/api/v1/builders/x", headers={"X-Request-Id": "id-1"})
        logging.getLogger("builderd.api").info("outside")
    records = [record for record in caplog.records if record.name.startswith("builderd.api")]
    assert [record.__dict__["request_id"] for record in records] == ["id-1", "-"]
    assert records[0].getMessage().startswith("request method=GET path=/api/v1/builders/x status=404 ms=")


async def test_no_secret_and_no_line_break_gets_into_the_log(
    client: httpx.AsyncClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "builderd"):
        created = await client.post("/api/v1/builders", json=MINIMAL)
        await client.get("/x%0AINFO forged?service_token=secret-in-query")
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("builderd"))
    assert "forged" in text
    assert "\nINFO" not in text
    for secret in (service.write, created.json()["data"]["service_token"], "secret-in-query"):
        assert secret not in text


async def test_answers_are_kept_by_no_cache_and_guessed_at_by_no_browser(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/api/v1/builders")).headers
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
