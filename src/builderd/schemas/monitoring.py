"""Metrics (CPU in vCPU, memory and disk in bytes), log lines, events, and the service's health."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainSerializer

from builderd.sandboxes.model import LogStream
from builderd.schemas.shape import Success, Time, View


class Answers(View):
    """Responses to visitors by the class of their status."""

    model_config = ConfigDict(serialize_by_alias=True)

    ok: float = Field(alias="2xx")
    redirected: float = Field(alias="3xx")
    refused: float = Field(alias="4xx")
    failed: float = Field(alias="5xx")


class ResponseTimes(View):
    """Seconds within which half, 95 % and 99 % of the app's responses began; at most 10, beyond which none is known."""

    p50: float
    p95: float
    p99: float


class ClassTimes(View):
    """Response times by the class of the status; null for a class without responses of the app."""

    model_config = ConfigDict(serialize_by_alias=True)

    ok: ResponseTimes | None = Field(alias="2xx")
    redirected: ResponseTimes | None = Field(alias="3xx")
    refused: ResponseTimes | None = Field(alias="4xx")
    failed: ResponseTimes | None = Field(alias="5xx")


class Present(View):
    """Present usage, measured over ``seconds``; the limits are the builder's ``resources``. Answers are per second."""

    time: Time
    seconds: float
    cpu: float | None
    cpu_limit: float
    memory_bytes: int
    memory_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    processes: int
    network_in_bytes_per_second: float | None
    network_out_bytes_per_second: float | None
    requests_per_second: float | None
    open_connections: int
    answers: Answers | None
    response_seconds: ResponseTimes | None
    response_seconds_by_class: ClassTimes | None


class Step(View):
    """Usage in one step from ``time`` on. ``seconds`` of it were sampled; 0: the builder did not run.

    ``cpu`` and ``memory_bytes`` are averages, ``…_most_bytes`` the highest, all others add up.
    """

    time: Time
    seconds: float
    cpu: float | None
    memory_bytes: int | None
    memory_most_bytes: int | None
    disk_most_bytes: int | None
    network_in_bytes: int
    network_out_bytes: int
    requests: int
    requests_per_second: float | None
    answers: Answers
    response_seconds: ResponseTimes | None
    response_seconds_by_class: ClassTimes | None


class Metrics(View):
    """Metrics of a builder. ``now`` is null while it does not run. The last step is incomplete."""

    now: Present | None
    step_seconds: int
    steps: list[Step]


#: Of a service in its cluster: one works, the others stand by.
Role = Literal["working", "standby"]


class Part(View):
    """Readiness of one part; ``message`` says what it waits for or what is wrong."""

    ready: bool
    message: str


class Health(View):
    """Version of builderd that responds, and its role in its cluster.

    ``worker`` is the host of the service that works, as a standby knows it. ``shows_money``: the operator has set
    prices, and wants costs shown to people.
    """

    version: str
    role: Role = "working"
    worker: str | None = None
    shows_money: bool = False


class Readiness(View):
    """Readiness of every part that builders need, and of the certificate of ``public_url``.

    That of a standby has no part that is ready; ``worker`` is the service that works.
    """

    database: Part
    engine: Part
    previews: Part
    vault: Part = Part(ready=True, message="an earlier service does not say")
    #: The certificate of ``public_url`` that the service gets by itself. It delays nothing: the API answers on
    #: ``host`` and ``port`` meanwhile.
    public_url: Part = Part(ready=True, message="an earlier service does not say")
    #: The machine's clock was set while the service ran, or rows may lie in the future. It delays nothing.
    clock: Part = Part(ready=True, message="an earlier service does not say")
    role: Role = "working"
    worker: str | None = None
    shows_money: bool = False


def _exact(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


#: RFC 3339 in UTC with microseconds: lines come faster than seconds.
ExactTime = Annotated[datetime, PlainSerializer(_exact, when_used="json")]


class LogLine(View):
    """Log line with the version that wrote it; ``process`` is such as ``worker.1`` for one of a further process."""

    time: ExactTime
    stream: LogStream
    version: int
    text: str
    process: str = ""


class LogAnswer(Success[list[LogLine]]):
    """Log lines, oldest first."""


class LogBucket(View):
    """Lines from ``time`` on, ``errors`` those of them that the app wrote to its standard error."""

    time: ExactTime
    lines: int
    errors: int


class LogVersion(View):
    """Version and the time of its first line."""

    version: int
    time: ExactTime


class LogDensity(View):
    """Lines over time: ``buckets`` of ``bucket_seconds`` each, from the first line to the last."""

    lines: int
    bucket_seconds: float
    buckets: list[LogBucket]
    versions: list[LogVersion]


class Event(View):
    """Event. ``id`` grows with time within a tenant. ``builder`` is null for the tenant's own.

    ``actor`` is ``token <name>`` or ``system``; ``reason`` is for people, ``details`` for machines.
    """

    id: int
    time: ExactTime
    type: str
    builder: str | None
    actor: str
    reason: str
    details: dict[str, Any]
