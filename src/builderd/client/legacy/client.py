"""Synchronous client on one connection pool."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx2
from httpx2 import ServerSentEvent
from pydantic import BaseModel, ValidationError

from builderd.client.legacy.backups import Backups
from builderd.client.legacy.errors import ApiError, NoAnswer
from builderd.client.legacy.files import Files
from builderd.client.legacy.pages import all_of
from builderd.client.legacy.reviews import Reviews
from builderd.client.legacy.streams import Events, read_json
from builderd.client.legacy.versions import OnStage, Stage, Versions, no_stages
from builderd.client.legacy.watching import Watching
from builderd.domain.builders import JobType, Status
from builderd.domain.logs import LogStream
from builderd.domain.processes import HOME
from builderd.domain.ssh import DEFAULT_MINUTES
from builderd.schemas.v1.builders import Builder, BuilderAnswer, BuilderPage, NewBuilder
from builderd.schemas.v1.caps import SpendingCap, SpendingCapAnswer
from builderd.schemas.v1.credentials import Credential, CredentialAnswer, CredentialPage
from builderd.schemas.v1.envelope import Failure
from builderd.schemas.v1.executions import Execution, ExecutionAnswer
from builderd.schemas.v1.health import Readiness, ReadinessAnswer
from builderd.schemas.v1.leases import Lease, LeaseAnswer, LeasePage
from builderd.schemas.v1.logs import LogAnswer, LogLine
from builderd.schemas.v1.qa import Qa, QaAnswer
from builderd.schemas.v1.spending import Deployment, Spending, SpendingAnswer
from builderd.schemas.v1.ssh import SshEndedAnswer, SshGrant, SshGrantAnswer

V = TypeVar("V", bound=BaseModel)

BASE = "/api/v1"
CONNECT_SECONDS = 10
#: An event stream is never silent for longer than its heartbeats' 15 seconds.
STREAM_SECONDS = 60
#: No read timeout for calls that wait for an outcome: the service has its own limits, and its error names them.
OUTCOME = httpx2.Timeout(CONNECT_SECONDS, read=None)
STREAM = httpx2.Timeout(CONNECT_SECONDS, read=STREAM_SECONDS)


class Client:
    """Client of the service at ``url`` with an API token. Use it in a ``with`` block, or ``close`` it.

    Every method raises ``ApiError`` for an error response, and ``NoAnswer`` without a valid response.
    """

    def __init__(self, url: str, token: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        self._http = httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"},
            timeout=CONNECT_SECONDS,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def watch(self) -> Watching:
        """Calls for events, webhooks and metrics."""
        return Watching(self._calls)

    @property
    def files(self) -> Files:
        """Calls for the files on builders' disks, and for uploads."""
        return Files(self._calls)

    @property
    def versions(self) -> Versions:
        """Calls that deploy versions, change settings and roll back."""
        return Versions(self._calls)

    @property
    def reviews(self) -> Reviews:
        """Calls for reviews and acceptances of findings."""
        return Reviews(self._call, self._request)

    @property
    def backups(self) -> Backups:
        """Calls for backups and restores."""
        return Backups(self._calls)

    @property
    def _calls(self) -> _Calls:
        return _Calls(self._call, self._events, self._request, self._receive, self._deploy)

    # Builders

    def create(self, new: NewBuilder, *, idempotency_key: str | None = None, on_stage: OnStage = no_stages) -> Builder:
        """Create a builder and wait until it is up; calls ``on_stage`` at the end of each stage."""
        body = new.model_dump(mode="json", exclude_unset=True)
        return self._deploy("POST", f"{BASE}/builders", body=body, query={}, key=idempotency_key, on_stage=on_stage)

    def _deploy(
        self, method: str, path: str, *, body: Any, query: Mapping[str, Any], key: str | None, on_stage: OnStage
    ) -> Builder:
        headers = {"Idempotency-Key": key} if key else {}
        with self._events(method, path, json=body, headers=headers, params=query) as events:
            if events.answer is not None:  # nothing had to be deployed
                return _read(BuilderAnswer, events.answer).data
            for event in events:
                if event.event == "done":
                    return _read(Builder, event.json())
                if event.event == "failed":
                    raise ApiError(_read(Failure, event.json()), None, events.request_id)
                on_stage(_stage(event))
        raise NoAnswer("The stream ended before the outcome of the call.")

    def create_async(self, new: NewBuilder, *, idempotency_key: str | None = None) -> Builder:
        """Create a builder without waiting; its status is ``creating``."""
        headers = {"Prefer": "respond-async", **({"Idempotency-Key": idempotency_key} if idempotency_key else {})}
        body = new.model_dump(mode="json", exclude_unset=True)
        return self._call(BuilderAnswer, "POST", f"{BASE}/builders", json=body, headers=headers).data

    def get(self, uuid: str) -> Builder:
        """Return one builder."""
        return self._call(BuilderAnswer, "GET", f"{BASE}/builders/{uuid}").data

    def list_page(
        self,
        *,
        page: int = 1,
        per_page: int = 25,
        name: str | None = None,
        status: Status | None = None,
        job_type: JobType | None = None,
        sort: str = "-created_at",
    ) -> BuilderPage:
        """Return a page of builders, with ``meta.total``."""
        query = {"page": page, "per_page": per_page, "name": name, "status": status, "job_type": job_type, "sort": sort}
        return self._call(BuilderPage, "GET", f"{BASE}/builders", params=_given(query))

    def start(self, uuid: str) -> Builder:
        """Start a builder and wait until it is up."""
        return self._change("POST", uuid, "/start")

    def stop(self, uuid: str) -> Builder:
        """Stop a builder and wait until it is stopped."""
        return self._change("POST", uuid, "/stop")

    def restart(self, uuid: str) -> Builder:
        """Restart a builder, running or not, and wait until it is up."""
        return self._change("POST", uuid, "/restart")

    def renew_service_token(self, uuid: str) -> Builder:
        """Replace a builder's service token and restart its app with the new one."""
        return self._change("POST", uuid, "/service-token")

    def delete(self, uuid: str) -> Builder:
        """Delete a builder with its files and wait until it is gone."""
        return self._change("DELETE", uuid, "")

    def _change(self, method: str, uuid: str, call: str) -> Builder:
        return self._call(BuilderAnswer, method, f"{BASE}/builders/{uuid}{call}", timeout=OUTCOME).data

    # Logs, commands and costs

    def logs(
        self, uuid: str, *, tail: int = 200, since: datetime | None = None, stream: LogStream | None = None
    ) -> list[LogLine]:
        """Return the last lines, oldest first."""
        query = _given({"tail": tail, "since": since, "stream": stream})
        return self._call(LogAnswer, "GET", f"{BASE}/builders/{uuid}/logs", params=query).data

    def follow_logs(self, uuid: str, *, tail: int = 200, stream: LogStream | None = None) -> Iterator[LogLine]:
        """Yield the last lines, then each new one, until the builder is deleted."""
        query = _given({"tail": tail, "stream": stream, "follow": True})
        with self._events("GET", f"{BASE}/builders/{uuid}/logs", params=query) as events:
            for event in events:
                yield _read(LogLine, event.json())

    def execute(
        self,
        uuid: str,
        command: str,
        *,
        timeout: int = 60,
        stdin: str = "",
        cwd: str = HOME,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
    ) -> Execution:
        """Run a command in the app's sandbox and wait for it, at most ``timeout`` seconds.

        With ``on_output``, which gets each piece of the output as it comes, the result's ``output`` is empty.
        """
        body = {"command": command, "timeout": timeout, "stdin": stdin, "cwd": cwd, "env": dict(env or {})}
        path = f"{BASE}/builders/{uuid}/exec"
        if on_output is None:
            return self._call(ExecutionAnswer, "POST", path, json=body, timeout=OUTCOME).data
        with self._events("POST", path, json={**body, "stream": True}) as events:
            for event in events:
                if event.event == "exit":
                    return _read(Execution, {**json.loads(event.data), "output": "", "stderr": ""})
                if event.event == "failed":
                    raise ApiError(_read(Failure, event.json()), None, events.request_id)
                on_output(json.loads(event.data)["text"])
        raise NoAnswer("The stream ended before the command did.")

    def spending(self, *, since: datetime | None = None, until: datetime | None = None) -> Spending:
        """Return the costs of all builders; fetches one page after the other."""
        query = _given({"from": since, "to": until})
        deployments: list[Deployment] = []
        for page in count(1):
            params = {**query, "page": page}
            found = self._call(SpendingAnswer, "GET", f"{BASE}/builders/spending", params=params).data
            deployments += found.deployments
            if not found.deployments or len(deployments) >= found.vm_count:
                break
        return found.model_copy(update={"deployments": deployments})

    def spending_cap(self, uuid: str | None = None) -> SpendingCap:
        """Return the monthly spending cap of all builders together or of one, and the amount spent."""
        return self._call(SpendingCapAnswer, "GET", _cap_path(uuid)).data

    def set_spending_cap(self, monthly: float | None, uuid: str | None = None) -> SpendingCap:
        """Set the monthly cap of all builders together or of one; None removes it, but not the operator's."""
        return self._call(SpendingCapAnswer, "PUT", _cap_path(uuid), json={"monthly": monthly}).data

    def readiness(self) -> Readiness:
        """Return the parts of a ready service. Raises ``ApiError`` while it is not, with the reason."""
        return self._call(ReadinessAnswer, "GET", "/readyz").data

    # Leases

    def take_lease(self, uuid: str, seconds: int, reason: str = "") -> Lease:
        """Keep a builder from being frozen or stopped for idleness, for at most 3600 seconds."""
        body = {"seconds": seconds, "reason": reason}
        return self._call(LeaseAnswer, "POST", f"{BASE}/builders/{uuid}/leases", json=body).data

    def leases(self, uuid: str) -> list[Lease]:
        """List the unexpired leases, oldest first."""
        return all_of(self._call, LeasePage, f"{BASE}/builders/{uuid}/leases")

    def renew_lease(self, uuid: str, lease: str, seconds: int) -> Lease:
        """Renew a lease for so many seconds from now."""
        path = f"{BASE}/builders/{uuid}/leases/{lease}"
        return self._call(LeaseAnswer, "PUT", path, json={"seconds": seconds}).data

    def end_lease(self, uuid: str, lease: str) -> Lease:
        """End a lease early."""
        return self._call(LeaseAnswer, "DELETE", f"{BASE}/builders/{uuid}/leases/{lease}").data

    # Gates

    def qa(self, uuid: str, *, version: int | None = None) -> Qa:
        """Return the QA results of a version, by default the current one."""
        return self._call(QaAnswer, "GET", f"{BASE}/builders/{uuid}/qa", params=_given({"version": version})).data

    def run_qa(self, uuid: str) -> Qa:
        """Run the QA gate again; the report follows in the background, see ``qa``."""
        return self._call(QaAnswer, "POST", f"{BASE}/builders/{uuid}/qa", timeout=OUTCOME).data

    def screenshot(self, uuid: str, name: str, *, version: int | None = None) -> bytes:
        """Return a screenshot as PNG; ``name`` is ``desktop`` or ``phone``."""
        path = f"{BASE}/builders/{uuid}/qa/screenshots/{name}"
        return self._request("GET", path, params=_given({"version": version})).content

    # Secrets

    def put_credential(self, name: str, values: Mapping[str, str], *, restart: bool = False) -> Credential:
        """Store secrets under a name; with ``restart`` the builders that run with the old values restart."""
        path = f"{BASE}/credentials/{name}"
        return self._call(
            CredentialAnswer, "PUT", path, json={"values": dict(values)}, params=_given({"restart": restart})
        ).data

    def credentials(self) -> list[Credential]:
        """List all credentials, without their values."""
        return all_of(self._call, CredentialPage, f"{BASE}/credentials")

    def delete_credential(self, name: str, *, force: bool = False) -> Credential:
        """Delete a credential; with ``force`` also while builders use it."""
        path = f"{BASE}/credentials/{name}"
        return self._call(CredentialAnswer, "DELETE", path, params=_given({"force": force})).data

    def grant_ssh(self, uuid: str, *, expires_minutes: int = DEFAULT_MINUTES, alone: bool = False) -> SshGrant:
        """Create a token for SSH logins; ``alone`` revokes all others."""
        path = f"{BASE}/builders/{uuid}/ssh{'/recreate' if alone else ''}"
        return self._call(SshGrantAnswer, "POST", path, json={"expires_minutes": expires_minutes}).data

    def end_ssh(self, uuid: str) -> None:
        """Revoke all SSH tokens of the builder."""
        self._call(SshEndedAnswer, "DELETE", f"{BASE}/builders/{uuid}/ssh")

    def _call(self, answer: type[V], method: str, path: str, **options: Any) -> V:
        return _read(answer, read_json(self._request(method, path, **options)))

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise NoAnswer(f"{method} {path}: {error or type(error).__name__}") from error
        if response.is_success:
            return response
        raise _refusal(response)

    def _receive(self, path: str, out: BinaryIO, **options: Any) -> int:
        """Write a response's body to ``out`` as it comes; return the number of bytes."""
        try:
            with self._http.stream("GET", path, timeout=STREAM, **options) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                return sum(out.write(piece) for piece in response.iter_raw())
        except httpx2.TransportError as error:
            raise NoAnswer(f"GET {path}: {error or type(error).__name__}") from error

    @contextmanager
    def _events(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Iterator[Events]:
        accept = {"Accept": "text/event-stream", **(headers or {})}
        try:
            with self._http.stream(method, path, headers=accept, timeout=STREAM, **options) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                yield Events(response)
        except httpx2.TransportError as error:
            raise NoAnswer(f"{method} {path}: {error or type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class _Calls:
    """Calls of the client that the classes per noun use."""

    call: Callable[..., Any]
    stream: Callable[..., AbstractContextManager[Iterable[ServerSentEvent]]]
    request: Callable[..., httpx2.Response]
    receive: Callable[..., int]
    deploy: Callable[..., Builder]


def _cap_path(uuid: str | None) -> str:
    return f"{BASE}/spending-cap" if uuid is None else f"{BASE}/builders/{uuid}/spending-cap"


def _stage(event: ServerSentEvent) -> Stage:
    data = json.loads(event.data)
    return Stage(event.event, data["seconds"], data["ok"])


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    """Drop parameters that are None; format times with their offset."""
    given = {name: value for name, value in query.items() if value is not None}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in given.items()}


def _refusal(response: httpx2.Response) -> Exception:
    try:
        failure = Failure.model_validate(read_json(response))
    except (NoAnswer, ValidationError):
        return NoAnswer(
            f"{response.request.method} {response.request.url}: {response.status_code}, not an error of builderd"
        )
    return ApiError(failure, response.status_code, response.headers.get("x-request-id", ""))


def _read(shape: type[V], value: Any) -> V:
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise NoAnswer(f"The response does not match the API's schema: {error}") from error
