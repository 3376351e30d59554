"""Metrics: CPU in vCPU, memory and disk in bytes, network traffic and responses."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from builderd.schemas.v1.shape import Success, Time, View


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


class MetricsAnswer(Success[Metrics]):
    """Response with a builder's metrics."""
