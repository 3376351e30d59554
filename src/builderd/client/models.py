"""Results of the API's calls.

A field that this release does not know is kept (``model_extra``), and a word such as a status is plain text: a newer
service breaks no client. A field that may be null may also be missing, as from an older service.
``tests/unit/client/test_models.py`` compares them with the service's own schemas.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """Base of all results. Validation is built when a class is first used, not when this module is imported."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True, serialize_by_alias=True)


class Stage(Model):
    """Stage of a deployment that has ended: ``review``, ``install``, ``start`` or ``qa``."""

    stage: str
    seconds: float
    ok: bool


class Token(Model):
    """API token without its secret. ``scopes`` are ``read``, ``write``, ``skip-gates``, ``admin``."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    current: bool = False


class NewToken(Token):
    """New API token with its ``secret``, which is shown this once."""

    secret: str


class Cost(Model):
    """Costs so far. ``hourly_rate`` while it runs, with 4 digits; ``runtime_hours``; ``cost`` with 2 digits."""

    currency: str
    hourly_rate: float
    runtime_hours: float
    cost: float


class Resources(Model):
    """Resources: vCPU, and GB (2^30 bytes) of memory and disk."""

    cpu: float
    memory: float
    disk: float


class BuilderState(Model):
    """A builder with its current version.

    ``service_token`` is in full for tokens that may write; others see ``…`` and its end.
    ``needs_restart``: it runs with credentials that were changed since it started.
    ``last_backup_error`` is null unless the last backup failed.
    ``review_passed`` and ``qa_passed`` are null until that gate has judged the version.
    """

    uuid: str
    name: str
    status: str
    preview_url: str
    service_token: str
    entrypoint: str
    port: int
    job_type: str
    env: dict[str, str]
    resources: Resources
    visibility: str
    auto_stop_interval: int
    backup_interval_hours: int
    credentials: list[str]
    needs_restart: bool
    isolation: str
    require_qa: bool
    install_scripts: bool
    review_passed: bool | None = None
    qa_passed: bool | None = None
    status_reason: str
    version: int
    exit_code: int | None = None
    cost: Cost
    created_at: datetime
    updated_at: datetime
    last_active_at: datetime | None = None
    last_backup_at: datetime | None = None
    last_backup_error: str | None = None


class Version(Model):
    """Version of a builder with its settings.

    ``status``: ``pending`` while it is reviewed, installed and started or waits for the next start, ``deployed`` once
    it was up, ``failed`` with its ``status_reason`` and the ``failure_code`` that its call was answered with.
    ``current`` is the one that serves or starts next. ``bundle`` is the sha256 of its files.
    """

    version: int
    status: str
    status_reason: str
    failure_code: str | None = None
    current: bool
    rolled_back_to: int | None = None
    bundle: str
    entrypoint: str
    port: int
    env: dict[str, str]
    resources: Resources
    isolation: str
    credentials: list[str]
    skip_review: bool
    skip_qa: bool
    require_qa: bool
    install_scripts: bool
    review_passed: bool | None = None
    qa_passed: bool | None = None
    created_by: str
    created_at: datetime


class LogLine(Model):
    """Log line with the version that wrote it."""

    time: datetime
    stream: str
    version: int
    text: str


class Answers(Model):
    """Responses to visitors by the class of their status."""

    ok: float = Field(alias="2xx")
    redirected: float = Field(alias="3xx")
    refused: float = Field(alias="4xx")
    failed: float = Field(alias="5xx")


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
    """Result of a command. ``exit_code`` 124: timeout; ``output`` has both streams, cut if ``truncated``."""

    exit_code: int
    output: str
    truncated: bool


class Lease(Model):
    """Lease of a builder. ``created_by`` is the token's name, or `app` for a lease that was taken from inside."""

    id: str
    reason: str
    created_by: str
    created_at: datetime
    expires_at: datetime


class QaCheck(Model):
    """Result of one check. ``message`` has request and response; ``findings`` name pages or log lines.

    ``outcome``: ``passed``, ``warning`` (worth a look, not an error), ``failed``, or ``not_judged`` with the reason.
    """

    name: str
    outcome: str
    message: str
    seconds: float
    findings: list[str]


class QaScreenshot(Model):
    """Screenshot; ``url`` is the path of its PNG in this API."""

    name: str
    url: str


class Qa(Model):
    """QA results of one version.

    ``gate`` judged the live app before the call that deployed it was answered, and is all that ``qa_passed`` stands on;
    ``checks`` were made afterwards on a disposable copy without a network. ``status`` is that of the report:
    ``none``, ``waiting``, ``running``, ``done``, or ``dropped`` with the reason in ``note``.
    """

    version: int
    bundle_hash: str
    qa_passed: bool | None = None
    skipped: bool
    gate: list[QaCheck]
    gate_at: datetime | None = None
    status: str
    checks: list[QaCheck]
    screenshots: list[QaScreenshot]
    note: str
    requested_by: str
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Acceptance(Model):
    """Acceptance of a finding: by whom, why, and until when (null: without end)."""

    reason: str
    accepted_by: str
    accepted_at: datetime
    expires_at: datetime | None = None


class Finding(Model):
    """Finding of a review.

    ``line`` counts from 1, 0 for a whole file; ``path`` is empty for all files. Secrets in ``text`` are masked.

    ``acceptable`` by the deployer (a hold) or by an admin (a block). ``demoted``: its severity would be higher in
    code that the entrypoint reaches.
    """

    fingerprint: str
    rule: str
    severity: str
    path: str
    line: int
    text: str
    message: str
    advice: str
    demoted: bool
    acceptable: bool
    accepted: Acceptance | None = None


class Review(Model):
    """Review of a version. ``passed``: no unaccepted block or hold. ``outdated``: the builder runs other code now.

    ``left_out`` counts omitted findings by rule; ``untold`` the omitted ones that block or hold.
    ``seconds`` is the duration of the review at ``reviewed_at``.
    """

    version: int
    passed: bool
    outdated: bool
    content_hash: str
    policy_hash: str
    reviewed_at: datetime
    seconds: float
    files: int
    scanners: dict[str, str]
    findings: list[Finding]
    left_out: dict[str, int]
    untold: int


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


class CredentialUse(Model):
    """Builder that uses a credential. ``needs_restart``: it runs with old values.

    ``not_restarted`` is the reason of a failed restart, else absent.
    """

    uuid: str
    name: str
    needs_restart: bool
    not_restarted: str | None = None


class Credential(Model):
    """Credential without its values. ``variables`` are their names.

    ``last_used_by`` is the uuid of the builder that last started with it.
    """

    name: str
    variables: list[str]
    created_at: datetime
    updated_at: datetime
    last_used_at: datetime | None = None
    last_used_by: str | None = None
    used_by: list[CredentialUse]


class SpendingCap(Model):
    """Spending cap: the lower of ``monthly`` (yours) and ``operator_limit`` ``applies``.

    ``spent`` is the amount in the present month, which ends at ``resets_at``.
    """

    currency: str
    monthly: float | None = None
    operator_limit: float | None = None
    applies: float | None = None
    spent: float
    resets_at: datetime


class Deployment(Model):
    """Costs of one builder; amounts as in its ``cost``."""

    uuid: str
    name: str
    hourly_rate: float
    runtime_hours: float
    cost: float


class Spending(Model):
    """Costs of all builders.

    ``total_cost`` is rounded once, so it can differ by a cent from the sum of the rounded shares.

    ``vm_count`` is the number of builders in ``deployments``.
    """

    currency: str
    total_cost: float
    vm_count: int
    deployments: list[Deployment]


class Webhook(Model):
    """Webhook. ``status_reason`` says why it is disabled; ``failures`` counts since the last success."""

    id: str
    url: str
    events: list[str]
    status: str
    status_reason: str
    failures: int
    last_success_at: datetime | None = None
    created_at: datetime


class WebhookWithSecret(Webhook):
    """New webhook; only this response contains its ``secret``."""

    secret: str


class Attempt(Model):
    """Attempt at a delivery. ``status`` of the response or null; ``note`` its beginning, or the error."""

    at: datetime
    status: int | None = None
    seconds: float
    note: str


class Delivery(Model):
    """One event for one webhook. ``id`` is its ``webhook-id`` in all attempts."""

    id: str
    event: int
    type: str
    status: str
    created_at: datetime
    next_attempt_at: datetime | None = None
    attempts: list[Attempt]


class UploadPlace(Model):
    """Upload URL: it needs no token, since it contains a secret."""

    upload_id: str
    upload_url: str
    expires_at: datetime


class UploadState(Model):
    """State of an upload: ``received`` bytes; ``complete`` once it can be deployed."""

    upload_id: str
    received: int
    size: int | None = None
    complete: bool
    expires_at: datetime


class SshGrant(Model):
    """SSH token with its command.

    ``token`` is the user name and shown only once. ``known_hosts`` is a line that trusts the gateway.
    """

    ssh_command: str
    token: str
    expires_at: datetime
    host: str
    port: int
    fingerprint: str
    known_hosts: str


class SshEnded(Model):
    """Builder whose SSH tokens were all revoked."""

    uuid: str


class Backup(Model):
    """Backup of a builder's files at ``created_at``, when it had ``version``.

    ``size_bytes`` is the size of the files, ``added_bytes`` the growth of the repository; both 0 until it is ``done``.
    ``error`` says why it failed, ``fault`` is the damage that the last drill found.
    """

    id: str
    builder: str
    builder_name: str
    kind: str
    status: str
    version: int
    created_at: datetime
    finished_at: datetime | None = None
    files: int
    size_bytes: int
    added_bytes: int
    error: str
    last_verified_at: datetime | None = None
    fault: str
    expires_at: datetime | None = None


class Health(Model):
    """Version of builderd that responds."""

    version: str


class Part(Model):
    """Readiness of one part; ``message`` says what it waits for or what is wrong."""

    ready: bool
    message: str


class Readiness(Model):
    """Readiness of every part that builders need."""

    database: Part
    engine: Part
    previews: Part
