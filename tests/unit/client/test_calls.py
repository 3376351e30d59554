"""Calls of the SDK: what is sent again and what is not, lost answers, broken streams, and typed errors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from tests.hostile_paths import builder
from tests.swallowing_proxy import swallowing_proxy
from tests.threaded_service import Running

import builderd
from builderd import AsyncBuilderd, Builderd
from builderd.client._sync import streams
from builderd.client.errors import BY_CODE, ApiError, Unprocessable, error_in, error_of
from builderd.client.retries import ended_by_machine
from builderd.core import errors as domain

CODE = {"main.py": "print('hello')"}
Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("_sync", "_async"):
        monkeypatch.setattr(f"builderd.client.{form}.transport.wait_before", lambda *_: 0.02)
        monkeypatch.setattr(f"builderd.client.{form}.streams.RECONNECT_INTERVAL", 0.01)


def mocked(handler: Handler, **options: Any) -> Builderd:
    return Builderd("http://builderd", "t", transport=httpx2.MockTransport(handler), **options)


class Script:
    """Answers in turn; a string is a connection that breaks."""

    def __init__(self, *answers: httpx2.Response | str) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise httpx2.ReadError(answer)
        return answer


def failure(status: int, code: str, **headers: str) -> httpx2.Response:
    body = {"success": False, "code": code, "message": "no"}
    return httpx2.Response(status, json=body, headers={"X-Request-Id": "r1", **headers})


def data(value: Any, **more: Any) -> httpx2.Response:
    return httpx2.Response(200, json={"success": True, "message": "", "data": value, **more})


def stream(*events: tuple[str, str, Any]) -> httpx2.Response:
    text = ": beat\n\n" + "".join(f"id: {i}\nevent: {name}\ndata: {json.dumps(value)}\n\n" for i, name, value in events)
    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, text=text)


def cut(*events: tuple[str, str, Any]) -> httpx2.Response:
    """A stream that breaks off after these events."""
    content = stream(*events).content

    class Broken(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield content
            raise httpx2.ReadError("broken")

    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Broken())


HEALTH = {"version": "9"}

# A lost answer


@pytest.mark.parametrize("swallow", [1, 2])
def test_a_swallowed_answer_never_makes_a_second_builder(running: Running, swallow: int) -> None:
    with swallowing_proxy(running.url, swallow) as proxy, Builderd(proxy.url, running.service.write) as client:
        app = client.builders.create("one", files=CODE, entrypoint="python3 main.py")
        assert proxy.swallowed == swallow
        assert app.status == "running"
        assert [one.uuid for one in client.builders.list()] == [app.uuid]
        assert [one.version for one in app.versions()] == [1]


def test_a_swallowed_answer_never_makes_a_second_version(running: Running) -> None:
    with Builderd(running.url, running.service.write) as client:
        app = client.builders.create("one", files=CODE, entrypoint="python3 main.py")
    with (
        swallowing_proxy(running.url, 1, f"PUT /api/v1/builders/{app.uuid} ") as proxy,
        Builderd(proxy.url, running.service.write) as client,
    ):
        app = client.builders.get("one").deploy(files={"main.py": "print('two')"})
        assert (proxy.swallowed, app.version) == (1, 2)
        assert [one.version for one in app.versions()] == [2, 1]


def test_a_deletion_whose_answer_was_lost_has_succeeded() -> None:
    script = Script("lost", failure(404, "not_found"))
    mocked(script).backups.remove("b1")
    assert len(script.requests) == 2


# Retries


@pytest.mark.parametrize(
    "first",
    [
        "broken",
        failure(503, "machine_fault", **{"Retry-After": "1"}),
        failure(429, "rate_limited", **{"Retry-After": "1"}),
        failure(503, "no_capacity", **{"Retry-After": "1"}),
    ],
)
def test_a_call_is_sent_again(first: httpx2.Response | str) -> None:
    script = Script(first, data(HEALTH))
    assert mocked(script).health().version == "9"
    assert len(script.requests) == 2


def test_on_retry_is_called_before_each_wait() -> None:
    waits: list[builderd.Retry] = []
    script = Script("broken", failure(503, "machine_fault", **{"Retry-After": "7"}), data(HEALTH))
    mocked(script, on_retry=waits.append).health()
    assert [(one.method, one.path, one.attempt, one.seconds) for one in waits] == [
        ("GET", "/healthz", 1, 0.02),
        ("GET", "/healthz", 2, 0.02),
    ]
    assert isinstance(waits[0].error, builderd.NoAnswer)
    assert isinstance(waits[1].error, builderd.Unavailable)


async def test_on_retry_is_called_for_deployments_of_the_asynchronous_client() -> None:
    waits: list[builderd.Retry] = []
    script = Script(
        failure(429, "rate_limited", **{"Retry-After": "60"}),
        stream(("", "failed", {"code": "start_failed", "message": "it ended"})),
    )
    client = AsyncBuilderd("http://builderd", "t", transport=httpx2.MockTransport(script))
    with pytest.raises(builderd.StartFailed):
        await client.with_options(on_retry=waits.append).builders.create("one", files=CODE)
    assert [(one.path, one.error.message) for one in waits] == [("/api/v1/builders", "no")]
    await client.aclose()


class Beats(httpx2.SyncByteStream):
    """A stream that beats and never ends."""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield b": beat\n\n"


@pytest.mark.parametrize("call", ["exec", "logs"])
def test_a_stream_ends_at_its_timeout(call: str) -> None:
    endless = httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, stream=Beats())
    script = Script(data(_builder()), endless)
    app = mocked(script, timeout=0.2).builders.get("00000000-0000-4000-8000-000000000000")
    with pytest.raises(builderd.TimedOut):
        app.exec("sleep 60", on_output=print) if call == "exec" else list(app.logs(follow=True))
    assert len(script.requests) == 2


def test_a_broken_stream_is_opened_again_until_its_timeout() -> None:
    script = Script(data(_builder()), cut(("1-1", "line", LINE)), *["broken"] * 1000)
    app = mocked(script, timeout=0.3).builders.get("00000000-0000-4000-8000-000000000000")
    begun = time.monotonic()
    with pytest.raises(builderd.TimedOut):
        list(app.logs(follow=True))
    # Else for a minute, or until there is no answer left.
    assert time.monotonic() - begun < 30
    assert len(script.requests) < 100


@pytest.mark.parametrize("call", ["health", "create"])
def test_a_wait_beyond_the_timeout_does_not_begin(call: str) -> None:
    script = Script(failure(429, "rate_limited", **{"Retry-After": "30"}))
    client = mocked(script, timeout=10)
    with pytest.raises(builderd.RateLimited):
        client.health() if call == "health" else client.builders.create("one", files=CODE)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (failure(429, "quota_exceeded"), builderd.QuotaExceeded),
        (failure(429, "rate_limited", **{"Retry-After": "3600"}), builderd.RateLimited),
        (failure(503, "no_capacity"), builderd.Unavailable),
        # Nobody makes room meanwhile: the answer says how, and a wait would keep it back.
        (failure(503, "no_capacity", **{"Retry-After": "60"}), builderd.NoCapacity),
        (failure(404, "not_found"), builderd.NotFound),
        (httpx2.Response(200, text="<html>"), builderd.NoAnswer),
        (httpx2.Response(404, json={"detail": "Not Found"}), builderd.NoAnswer),
    ],
)
def test_a_call_against_which_time_does_not_help_is_not(answer: httpx2.Response, error: type[Exception]) -> None:
    script = Script(answer)
    with pytest.raises(error):
        mocked(script).health()
    assert len(script.requests) == 1


def test_a_call_that_could_do_harm_twice_is_not_sent_again() -> None:
    script = Script("broken")
    with pytest.raises(builderd.NoAnswer):
        mocked(script).webhooks.create("https://example.com")
    assert len(script.requests) == 1


def test_retries_are_limited_and_can_be_turned_off() -> None:
    for retries in (0, 2, 3):
        script = Script(*["broken"] * 10)
        with pytest.raises(builderd.NoAnswer):
            mocked(script, max_retries=retries).health()
        assert len(script.requests) == retries + 1


def test_a_deployment_waits_for_the_outcome_of_its_first_call() -> None:
    going_on = [failure(409, "conflict", **{"Retry-After": "1"}) for _ in range(9)]
    script = Script("broken", *going_on, stream(("", "failed", {"code": "start_failed", "message": "it ended"})))
    with pytest.raises(builderd.StartFailed):
        mocked(script).builders.create("one", files=CODE)
    assert len({request.headers["Idempotency-Key"] for request in script.requests}) == 1
    assert len(script.requests) == 11


def test_a_deployment_ends_at_its_timeout() -> None:
    script = Script(*[failure(409, "conflict", **{"Retry-After": "1"})] * 100)
    with pytest.raises(builderd.TimedOut):
        mocked(script, timeout=0.2).builders.create("one", files=CODE)


@pytest.mark.parametrize(
    ("code", "details", "ended"),
    [
        ("machine_fault", {"uuid": "u", "version": 1}, True),
        ("bundle_lost", {"uuid": "u", "version": 2}, True),
        ("start_failed", {"uuid": "u", "version": 2}, False),
        # Nothing began: the files of the version before are lost.
        ("bundle_lost", {"uuid": "u", "bundle": "0" * 64}, False),
        # The version serves, and its route is not up to date.
        ("engine_unavailable", {"uuid": "u"}, False),
        ("no_capacity", None, False),
    ],
)
def test_only_a_version_that_failed_was_ended_by_the_machine(
    code: str, details: dict[str, Any] | None, ended: bool
) -> None:
    assert ended_by_machine(error_of({"code": code, "message": "m", "data": details})) is ended


# Streams

LINE = {"time": "2026-01-31T12:00:00.000001Z", "stream": "stdout", "version": 1}


def test_a_broken_stream_goes_on_after_its_last_line() -> None:
    builder = mocked(Script(data(_builder()))).builders.get("00000000-0000-4000-8000-000000000000")
    script = Script(
        cut(("1-0", "line", {**LINE, "text": "a"}), ("1-1", "line", {**LINE, "text": "b"})),
        failure(503, "machine_fault"),
        stream(("1-2", "line", {**LINE, "text": "c"})),
    )
    builder._transport = mocked(script)._transport
    assert [line.text for line in builder.logs(follow=True)] == ["a", "b", "c"]
    assert [request.headers.get("Last-Event-ID") for request in script.requests] == [None, "1-1", "1-1"]


def test_a_stream_that_broke_before_its_first_event_goes_on_from_its_start() -> None:
    first = cut()
    first.headers["Date"] = "Sat, 31 Jan 2026 12:00:00 GMT"
    script = Script(first, stream())
    assert list(mocked(script).events(follow=True)) == []
    assert "since" not in script.requests[0].url.params
    assert script.requests[1].url.params["since"] == "2026-01-31T12:00:00+00:00"


def test_a_stream_that_stays_broken_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECONNECT_SECONDS", 0.1)
    script = Script(cut(("1", "x", _event(1))), *["broken"] * 1000)
    with pytest.raises(builderd.NoAnswer):
        list(mocked(script).events(follow=True))


def test_a_stream_that_is_refused_is_not_opened_again() -> None:
    with pytest.raises(builderd.NotFound):
        list(mocked(Script(failure(404, "not_found"))).events(follow=True))


# Lists, and calls that no example makes


def test_a_list_fetches_page_after_page() -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        page = int(request.url.params["page"])
        rows = [_event(number) for number in range((page - 1) * 100, min(page * 100, 250))]
        return data(rows, meta={"page": page, "per_page": 100, "total": 250})

    assert [event.id for event in mocked(handler).events()] == list(range(250))


def test_a_finding_is_accepted_and_a_screenshot_read() -> None:
    script = Script(data(_builder()), failure(422, "validation_error"), httpx2.Response(200, content=b"PNG"))
    app = mocked(script).builders.get("00000000-0000-4000-8000-000000000000")
    with pytest.raises(builderd.ValidationFailed):
        app.review.accept("f" * 32, "it is right", expires=datetime(2026, 1, 31, tzinfo=UTC))
    assert app.qa.screenshot("phone", 2) == b"PNG"
    assert [(one.method, one.url.raw_path.decode()) for one in script.requests[1:]] == [
        ("POST", f"/api/v1/builders/{app.uuid}/review/accept"),
        ("GET", f"/api/v1/builders/{app.uuid}/qa/screenshots/phone?version=2"),
    ]


def test_an_answer_that_lacks_a_field_is_no_answer() -> None:
    with pytest.raises(builderd.NoAnswer, match="version"):
        mocked(Script(data({}))).health()


def test_a_client_needs_an_url_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUILDERD_URL", raising=False)
    monkeypatch.delenv("BUILDERD_TOKEN", raising=False)
    with pytest.raises(ValueError, match="BUILDERD_URL"):
        Builderd(token="t")
    with pytest.raises(ValueError, match="BUILDERD_TOKEN"):
        Builderd("http://builderd")


# Errors


def test_each_code_of_the_service_has_a_class() -> None:
    codes = {
        error.code
        for error in vars(domain).values()
        if isinstance(error, type) and issubclass(error, domain.BuilderdError) and hasattr(error, "code")
    }
    assert codes - {"stage_failed", ""} <= set(BY_CODE)


def test_a_stage_that_failed_comes_with_its_log(running: Running) -> None:
    running.service.installer.refusal = "no such package"
    with Builderd(running.url, running.service.write) as client:
        with pytest.raises(builderd.InstallFailed) as caught:
            client.builders.create("one", files={**CODE, "requirements.txt": "nothing"}, entrypoint="python3 main.py")
        error = caught.value
        assert error.builder == client.builders.get("one").uuid
        assert error.next_step == f"builderd logs {error.builder} --stream build"
        assert (error.status, error.code) == (422, "install_failed")
        assert error.request_id


def test_a_failed_review_has_its_findings() -> None:
    error = BY_CODE["review_failed"]("review_failed", "no", data={"uuid": "u", "review": {"findings": [{"rule": "x"}]}})
    assert isinstance(error, builderd.ReviewFailed)
    assert isinstance(error, Unprocessable)
    assert error.findings == [{"rule": "x"}]


def test_a_refused_terminal_has_the_services_reason(running: Running) -> None:
    with Builderd(running.url, running.service.write) as client:
        app = client.builders.create("one", files=CODE, entrypoint="python3 main.py")
        with pytest.raises(builderd.ValidationFailed) as caught, app.terminal(columns=0):
            pass
    assert "columns" in caught.value.errors


def test_an_unknown_code_has_the_class_of_its_status() -> None:
    error = error_in(409, {"retry-after": "7"}, b'{"success": false, "code": "new_code", "message": "m"}')
    assert isinstance(error, builderd.Conflict)
    assert (error.code, error.retry_after) == ("new_code", 7)
    assert isinstance(error_in(418, {}, b'{"code": "teapot", "message": "m"}'), ApiError)


def test_spending_comes_whole_or_in_pages(running: Running) -> None:
    with Builderd(running.url, running.service.write) as client:
        for name in ("spent-1", "spent-2"):
            client.builders.create(name, files=CODE, entrypoint="python3 main.py")
        whole = client.spending.get()
        assert len(whole.deployments) == whole.vm_count
        pages = [client.spending.page(number, 1) for number in range(1, whole.vm_count + 1)]
        assert [page.deployments[0].uuid for page in pages] == [one.uuid for one in whole.deployments]


def _event(number: int) -> dict[str, Any]:
    return {"id": number, "time": LINE["time"], "type": "x", "builder": None, "actor": "", "reason": "", "details": {}}


def _builder() -> dict[str, Any]:
    return {**builder(), "name": "one", "version": 0}
