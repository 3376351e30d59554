"""Output, usage and events of a builder, and what is done beside its app."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from builderd.client.models.base import Model


class LogLine(Model):
    """Log line with the version that wrote it."""

    time: datetime
    stream: str
    version: int
    text: str


class LogBucket(Model):
    """Lines from ``time`` on, ``errors`` those of them that the app wrote to its standard error."""

    time: datetime
    lines: int
    errors: int


class LogVersion(Model):
    """Version and the time of its first line."""

    version: int
    time: datetime


class LogDensity(Model):
    """Lines over time: ``buckets`` of ``bucket_seconds`` each, from the first line to the last."""

    lines: int
    bucket_seconds: float
    buckets: list[LogBucket]
    versions: list[LogVersion]


class Answers(Model):
    """Responses to visitors by the class of their status."""

    ok: float = Field(alias="2xx")
    redirected: float = Field(alias="3xx")
    refused: float = Field(alias="4xx")
    failed: float = Field(alias="5xx")


class ResponseTimes(Model):
    """Seconds within which half, 95 % and 99 % of the app's responses began; at most 10, beyond which none is known."""

    p50: float
    p95: float
    p99: float


class ClassTimes(Model):
    """Response times by the class of the status; null for a class without responses of the app."""

    ok: ResponseTimes | None = Field(alias="2xx", default=None)
    redirected: ResponseTimes | None = Field(alias="3xx", default=None)
    refused: ResponseTimes | None = Field(alias="4xx", default=None)
    failed: ResponseTimes | None = Field(alias="5xx", default=None)


class Present(Model):
    """Present usage, measured over ``seconds``; the limits are the builder's ``resources``. Answers are per second."""

    time: datetime
    seconds: float
    cpu: float | None = None
    cpu_limit: float
    memory_bytes: int
    memory_limit_bytes: int
    disk_bytes: int
    disk_limit_bytes: int
    processes: int
    network_in_bytes_per_second: float | None = None
    network_out_bytes_per_second: float | None = None
    requests_per_second: float | None = None
    open_connections: int
    answers: Answers | None = None
    response_seconds: ResponseTimes | None = None
    response_seconds_by_class: ClassTimes | None = None


class Step(Model):
    """Usage in one step from ``time`` on. ``seconds`` of it were sampled; 0: the builder did not run.

    ``cpu`` and ``memory_bytes`` are averages, ``…_most_bytes`` the highest, all others add up.
    """

    time: datetime
    seconds: float
    cpu: float | None = None
    memory_bytes: int | None = None
    memory_most_bytes: int | None = None
    disk_most_bytes: int | None = None
    network_in_bytes: int
    network_out_bytes: int
    requests: int
    requests_per_second: float | None = None
    answers: Answers
    response_seconds: ResponseTimes | None = None
    response_seconds_by_class: ClassTimes | None = None


class Metrics(Model):
    """Metrics of a builder. ``now`` is null while it does not run. The last step is incomplete."""

    now: Present | None = None
    step_seconds: int
    steps: list[Step]


class Event(Model):
    """Event. ``id`` grows with time within a tenant. ``builder`` is null for the tenant's own.

    ``actor`` is ``token <name>`` or ``system``; ``reason`` is for people, ``details`` for machines.
    """

    id: int
    time: datetime
    type: str
    builder: str | None = None
    actor: str
    reason: str
    details: dict[str, Any]


class Execution(Model):
    """Result of a command. ``exit_code`` 124: timeout; ``output`` has both streams, cut if ``truncated``.

    With ``separate``, ``output`` has standard output alone, and ``stderr`` standard error; else ``stderr`` is empty.
    ``hint`` names what a failed command's output shows to be missing, and where to add it; else it is empty.
    """

    exit_code: int
    output: str
    stderr: str = ""
    truncated: bool
    hint: str = ""


class RemovedBuilds(Model):
    """Number of removed ``results`` of builds, and the ``bytes`` that they took."""

    results: int
    bytes: int


class PortPreview(Model):
    """URL of one port of a sandbox. It wants the service token, or a link."""

    port: int
    url: str


class PreviewLink(Model):
    """Valid link to a preview. Its URL is shown when it is made, and not again."""

    id: str
    port: int | None = None
    created_by: str
    created_at: datetime
    expires_at: datetime


class NewPreviewLink(PreviewLink):
    """New link. ``url`` opens the preview without another token."""

    url: str


class Lease(Model):
    """Lease of a builder. ``created_by`` is the token's name, or `app` for a lease that was taken from inside."""

    id: str
    reason: str
    created_by: str
    created_at: datetime
    expires_at: datetime


class TxtRecord(Model):
    """TXT record by which you get a name that another tenant holds or held within 90 days, as one above or below it."""

    name: str
    value: str


class Domain(Model):
    """Custom domain. ``host`` is in A-labels (`xn--…`), ``name`` the same for people.

    ``reason`` says what is wrong, and ``next_try_at`` when it is looked at again. ``expires_at`` is the end of its
    certificate.
    """

    host: str
    name: str
    status: str
    reason: str
    next_try_at: datetime | None = None
    expires_at: datetime | None = None
    url: str
    created_at: datetime
    txt: TxtRecord


class FileEntry(Model):
    """Entry of a folder.

    ``size`` in bytes, ``mode`` the permissions in octal, ``target`` what a link points to (links are not followed).

    Bytes of a name that are not UTF-8 are shown as U+FFFD; such a file cannot be named in a path.
    """

    name: str
    type: str
    size: int
    mode: str
    mtime: datetime
    target: str | None = None
