"""Parts of a builder: commands, SSH tokens, leases that keep it awake, domains, preview links and backups."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from builderd.backups.model import BackupKind, BackupStatus
from builderd.builders.model import MAX_REASON_BYTES, MAX_SECONDS
from builderd.core.addresses import MAX_HOST, a_labels
from builderd.executions.model import (
    DEFAULT_MINUTES,
    HOME,
    MAX_MINUTES,
    MAX_STDIN_BYTES,
    MIN_MINUTES,
    folder_error,
    stdin_error,
)
from builderd.previews import model as previews
from builderd.sandboxes.model import MAX_COMMAND_BYTES, command_error
from builderd.schemas.builders import Env, Name
from builderd.schemas.shape import JsonInt, Page, Shape, Success, Time, View, checked_by
from builderd.versions.model import text_error

MAX_TIMEOUT = 600

Command = Annotated[
    str,
    checked_by(command_error),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_COMMAND_BYTES, "pattern": r"\S"}),
]
Folder = Annotated[str, checked_by(folder_error), Field(json_schema_extra={"minLength": 1})]
Stdin = Annotated[str, checked_by(stdin_error), Field(json_schema_extra={"maxLength": MAX_STDIN_BYTES})]


class NewExecution(Shape):
    """Command to run. After ``timeout`` seconds, every process that it started is killed."""

    command: Command = Field(description="Run by /bin/sh in the app's folder, with the app's environment.")
    timeout: JsonInt = Field(default=60, ge=1, le=MAX_TIMEOUT)
    stdin: Stdin = Field(default="", description="What the command reads, as UTF-8.")
    cwd: Folder = Field(default=HOME, description="Where it begins: absolute, or below /app.")
    env: Env = Field(default_factory=dict, description="Added to the app's environment.")
    stream: bool = Field(default=False, description="Answer with its output as it comes, as an event stream.")
    separate: bool = Field(default=False, description="Keep standard error apart from standard output.")
    process: str = Field(default="", max_length=63, description="A further process in whose sandbox it runs.")


class Execution(View):
    """Result of a command. ``exit_code`` 124: timeout; ``output`` has both streams, cut if ``truncated``.

    With ``separate``, ``output`` has standard output alone, and ``stderr`` standard error; else ``stderr`` is empty.
    ``hint`` names what a failed command's output shows to be missing, and where to add it; else it is empty.
    """

    exit_code: int
    output: str
    stderr: str
    truncated: bool
    hint: str


class NewSshGrant(Shape):
    """Options of a new SSH token."""

    expires_minutes: JsonInt = Field(default=DEFAULT_MINUTES, ge=MIN_MINUTES, le=MAX_MINUTES)


class SshGrant(View):
    """SSH token with its command.

    ``token`` is the user name and shown only once. ``known_hosts`` is a line that trusts the gateway.
    """

    ssh_command: str
    token: str
    expires_at: Time
    host: str
    port: int
    fingerprint: str
    known_hosts: str


class SshEnded(View):
    """Builder whose SSH tokens were all revoked."""

    uuid: str


Seconds = Annotated[JsonInt, Field(ge=1, le=MAX_SECONDS)]
Reason = Annotated[
    str,
    checked_by(lambda reason: text_error(reason, MAX_REASON_BYTES)),
    Field(json_schema_extra={"maxLength": MAX_REASON_BYTES}),
]


class NewLease(Shape):
    """Lease of `seconds` in which the builder is not frozen or stopped for idleness."""

    seconds: Seconds
    reason: Reason = Field(default="", description="What it is busy with, for people.")


class RenewedLease(Shape):
    """Lease renewed for `seconds` from now. Without a `reason`, the present one stays."""

    seconds: Seconds
    reason: Reason | None = None


class Lease(View):
    """Lease of a builder. ``created_by`` is the token's name, or `app` for a lease that was taken from inside."""

    id: str
    reason: str
    created_by: str
    created_at: Time
    expires_at: Time


def _host_error(host: str) -> str | None:
    try:
        a_labels(host)
    except ValueError as error:
        return str(error)
    return None


Host = Annotated[str, checked_by(_host_error), Field(json_schema_extra={"maxLength": 4 * MAX_HOST, "minLength": 1})]


class NewDomain(Shape):
    """Host name of your own, such as `shop.example.com` or `bücher.example`. Wildcards are refused."""

    host: Host


class TxtRecord(View):
    """TXT record that gets you a name that another tenant holds, or held within 90 days, or one above or below it."""

    name: str
    value: str


class Domain(View):
    """Custom domain. ``host`` is in A-labels (`xn--…`), ``name`` the same for people.

    ``reason`` says what is wrong, and ``next_try_at`` when it is looked at again. ``expires_at`` is the end of its
    certificate.
    """

    host: str
    name: str
    status: str
    reason: str
    next_try_at: Time | None
    expires_at: Time | None
    url: str
    created_at: Time
    txt: TxtRecord


class NewPreviewLink(Shape):
    """New link to a preview."""

    expires_minutes: JsonInt = Field(default=previews.DEFAULT_MINUTES, ge=previews.MIN_MINUTES, le=previews.MAX_MINUTES)
    port: JsonInt | None = Field(default=None, ge=1, le=65535, description="Left out: the builder's own port.")


class PreviewLink(View):
    """Valid link to a preview. Its URL is shown when it is made, and not again."""

    id: str
    port: int | None
    created_by: str
    created_at: Time
    expires_at: Time


class PreviewLinkWithUrl(PreviewLink):
    """New link. ``url`` opens the preview without another token."""

    url: str


class PreviewLinkAnswer(Success[PreviewLinkWithUrl]):
    """The new link."""


class PortPreview(View):
    """URL of one port of a sandbox. It wants the service token, or a link."""

    port: int
    url: str


class Backup(View):
    """Backup of a builder's files at ``created_at``, when it had ``version``.

    ``size_bytes`` is the size of the files, ``added_bytes`` the growth of the repository; both 0 until it is ``done``.
    ``error`` says why it failed, ``fault`` is the damage that a drill or a check found in it.
    """

    id: str
    builder: str
    builder_name: str
    kind: BackupKind
    status: BackupStatus
    version: int
    created_at: Time
    finished_at: Time | None
    files: int
    size_bytes: int
    added_bytes: int
    error: str
    last_verified_at: Time | None
    fault: str
    expires_at: Time | None


BackupAnswer = Success[Backup]
BackupPage = Page[Backup]


class NewRestore(Shape):
    """Options of a restore."""

    as_: Name | None = Field(
        default=None, alias="as", description="The name of a new builder to make of it; the present one stays as it is."
    )


class NewBuilderOfBackup(Shape):
    """New builder to make of a backup."""

    as_: Name = Field(alias="as", description="The name of the new builder to make of it.")


class RemovedBuilds(View):
    """Number of removed ``results``, and the ``bytes`` that they took."""

    results: int
    bytes: int
