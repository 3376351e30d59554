"""Builders: the request that creates one, and the response that shows one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from builderd.builders.model import NAME, JobType, Status, Visibility, name_error
from builderd.code.model import MAX_PATH_BYTES, optional_path_error
from builderd.core import resources as domain
from builderd.credentials.model import NAME as CREDENTIAL_NAME
from builderd.credentials.model import name_error as credential_error
from builderd.dependencies.model import MAX_PACKAGES, PACKAGE_NAME, package_error
from builderd.executions.model import MAX_STDIN_BYTES, input_error
from builderd.schemas.files import FileContent, Files
from builderd.schemas.shape import (
    FieldError,
    JsonInt,
    Page,
    Shape,
    Success,
    Time,
    View,
    checked_by,
    refusal,
    with_field_errors,
)
from builderd.versions.model import (
    DEFAULT_PORT,
    ENV_NAME,
    MAX_ENTRYPOINT_BYTES,
    MAX_PROCESSES,
    MAX_SCALE,
    PROCESS_NAME,
    Isolation,
    Protocol,
    entrypoint_error,
    env_error,
    env_size_error,
    process_errors,
    stage_command_error,
)

#: The largest whole number that every database keeps in a plain integer column.
MAX_INTEGER = 2**31 - 1
MAX_CREDENTIALS = 100

UNBOUNDED = domain.Resources(inf, inf, inf)


class Resources(Shape):
    """``cpu`` in vCPU, ``memory`` and ``disk`` in GB (2^30 bytes). The service has upper bounds of its own."""

    cpu: float = Field(default=1, json_schema_extra={"minimum": domain.MINIMUM.cpu})
    memory: float = Field(default=1, json_schema_extra={"minimum": domain.MINIMUM.memory})
    disk: float = Field(default=3, json_schema_extra={"minimum": domain.MINIMUM.disk})

    @field_validator("cpu", "memory", "disk")
    @classmethod
    def _in_bounds(cls, value: float, info: ValidationInfo) -> float:
        assert info.field_name
        maximum = (info.context or {}).get("maximum", UNBOUNDED)
        errors = domain.resource_errors(replace(domain.MINIMUM, **{info.field_name: value}), maximum)
        if info.field_name in errors:
            raise refusal(errors[info.field_name])
        return value

    @property
    def value(self) -> domain.Resources:
        """Convert to the domain's resources."""
        return domain.Resources(self.cpu, self.memory, self.disk)


def _env(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    env = {name: _env_text(content) for name, content in value.items()}
    return with_field_errors(_env_errors(env), lambda: env)


def _env_text(value: Any) -> str | None:
    """Return the text of a string, number or boolean (as JSON writes it); None for any other value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def _env_errors(env: Mapping[str, str | None]) -> Iterator[FieldError]:
    for name, value in env.items():
        # Compared with the port once that is known: ``VersionSettings.without_port``.
        why = "must be text, a number or a boolean" if value is None else name != "PORT" and env_error(name, value)
        if why:
            yield (name,), why
    why = env_size_error({name: value or "" for name, value in env.items()})
    if why is not None:
        yield (), why


Env = Annotated[
    dict[str, str],
    BeforeValidator(_env),
    Field(
        json_schema_extra={
            "additionalProperties": {"type": ["string", "number", "boolean"]},
            "propertyNames": {"pattern": f"^{ENV_NAME.pattern}$"},
        }
    ),
]

EnvFile = Annotated[str, checked_by(optional_path_error), Field(json_schema_extra={"maxLength": MAX_PATH_BYTES})]

Name = Annotated[str, checked_by(name_error), Field(json_schema_extra={"pattern": f"^{NAME.pattern}$"})]

Entrypoint = Annotated[
    str,
    checked_by(entrypoint_error),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ENTRYPOINT_BYTES, "pattern": r"\S"}),
]


def _processes(value: Any) -> Any:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        return value
    errors = (((name,) if name else (), why) for name, why in process_errors(value))
    return with_field_errors(errors, lambda: value)


#: Further processes: name → command.
Processes = Annotated[
    dict[str, str],
    BeforeValidator(_processes),
    Field(
        json_schema_extra={
            "additionalProperties": {"type": "string", "minLength": 1, "maxLength": MAX_ENTRYPOINT_BYTES},
            "propertyNames": {"pattern": f"^{PROCESS_NAME.pattern}$"},
            "maxProperties": MAX_PROCESSES,
        }
    ),
]

#: Further process → number of its sandboxes.
Scale = Annotated[
    dict[str, Annotated[JsonInt, Field(ge=0, le=MAX_SCALE)]],
    Field(max_length=MAX_PROCESSES, json_schema_extra={"propertyNames": {"pattern": f"^{PROCESS_NAME.pattern}$"}}),
]

Command = Annotated[str, checked_by(stage_command_error), Field(json_schema_extra={"maxLength": MAX_ENTRYPOINT_BYTES})]

#: A slash at its end is left out.
Root = Annotated[
    str,
    AfterValidator(lambda root: root.rstrip("/") or root),
    checked_by(optional_path_error),
    Field(json_schema_extra={"maxLength": MAX_PATH_BYTES}),
]

#: Stored, so without a NUL character.
Stdin = Annotated[str, checked_by(input_error), Field(json_schema_extra={"maxLength": MAX_STDIN_BYTES})]

Credential = Annotated[
    str, checked_by(credential_error), Field(json_schema_extra={"pattern": f"^{CREDENTIAL_NAME.pattern}$"})
]

Package = Annotated[str, checked_by(package_error), Field(json_schema_extra={"pattern": f"^{PACKAGE_NAME.pattern}$"})]


def _is(value: Any, *kinds: JobType) -> bool:
    return isinstance(value, dict) and value.get("job_type") in kinds


def _code_errors(value: Any, required: bool) -> Iterator[FieldError]:
    if not isinstance(value, dict):
        return
    has_source = value.get("source") is not None
    if "files" in value and has_source:
        yield ("source",), "is the code in place of files: leave one of the two out"
    if value.get("stored") is not None and has_source:
        yield ("source",), "is all of the code: leave it or stored out"
    if required and "files" not in value and not has_source:
        yield ("files",), "is required: the code itself, or in its place the source, an upload"
    env = value.get("env")
    if isinstance(env, dict) and "PORT" in env and "port" in value and str(env["PORT"]) != str(value["port"]):
        yield ("env", "PORT"), "is the app's port: set `port` instead, or as well"


class Source(Shape):
    """Complete upload to take the code from."""

    upload_id: str = Field(json_schema_extra={"format": "uuid"})


#: For the OpenAPI document: one of the two, which a sandbox may lack.
CODE_RULE: JsonDict = {
    "oneOf": [
        {"required": ["files"], "properties": {"source": {"type": "null"}}},
        {"required": ["source"], "properties": {"source": {"type": "object"}, "files": False}},
        {
            "required": ["job_type"],
            "properties": {"job_type": {"const": "sandbox"}, "files": False, "source": {"type": "null"}},
        },
    ]
}


class NewBuilder(Shape):
    """New builder: code and settings. All of ``files`` together have at most 20,000,000 bytes."""

    #: Whether code and an entrypoint must be given, unless it is a sandbox.
    code_is_required: ClassVar[bool] = True
    model_config = ConfigDict(json_schema_extra=CODE_RULE)

    name: Name = Field(description="Unique among your builders.")
    entrypoint: Entrypoint | None = Field(
        default=None,
        description="Run by /bin/sh in the app's folder; must listen on 0.0.0.0:<port>. "
        "Left out: what is detected in the code: the line of a Procfile, a framework, a static site. Of a static site: "
        "`serve-static FOLDER`, with ` --single-page` where index.html is all pages.",
    )
    files: Files = Field(
        default_factory=dict[str, FileContent], description="Relative path → text, or an object with base64 content."
    )
    source: Source | None = Field(default=None, description="An upload, in place of `files`.")
    port: JsonInt = Field(
        default=DEFAULT_PORT,
        ge=1,
        le=65535,
        description="Given to the app as PORT. Left out: an app that listens on another port is found there.",
    )
    env: Env = Field(default_factory=dict, description="Environment variables; not a place for secrets.")
    resources: Resources = Field(
        default_factory=Resources, description="A static site has 0.125 GB of memory where that is left out."
    )
    job_type: JobType = Field(
        default=JobType.ALWAYS_ON,
        strict=False,
        description="always_on: an app that listens on `port`; static: files alone, served by a server of builderd's; "
        "worker: a process without a port, kept running; "
        "one_time: a command that runs to its end; sandbox: no app, for commands, files, SSH and terminals. "
        "Left out, without an entrypoint: what is detected in the code.",
    )
    backup_interval_hours: JsonInt = Field(default=0, ge=0, le=MAX_INTEGER, description="0: no backups.")
    auto_stop_interval: JsonInt = Field(default=0, ge=0, le=MAX_INTEGER, description="Minutes; 0: never.")
    visibility: Visibility = Field(
        default=Visibility.PUBLIC, strict=False, description="Of the preview. Left out: a sandbox's is private."
    )
    credentials: list[Credential] = Field(default_factory=list, max_length=MAX_CREDENTIALS)
    isolation: Isolation | None = Field(default=None, strict=False, description="Left out: the service's default.")
    skip_review: bool = Field(default=False, description="Needs the scope skip-gates.")
    skip_qa: bool = Field(default=False, description="Needs the scope skip-gates.")
    require_qa: bool = False
    install_scripts: bool = Field(
        default=False, description="Run the scripts that npm packages bring for installation."
    )
    build: Command | None = Field(
        default=None,
        description="Run once a version, before it starts: what it writes into the app's folder belongs to the "
        "version. Left out: what is detected; with an entrypoint, the script `build` of package.json. Empty: none.",
    )
    release: Command | None = Field(
        default=None,
        description="Run once before a version takes over, on its disk, such as a migration; if it fails, the "
        "deployment fails. Left out: what is detected; with an entrypoint, the Procfile's. Empty: none.",
    )
    stdin: Stdin = Field(default="", description="Of a one_time job: what its command reads.")
    start_timeout: JsonInt = Field(
        default=0, ge=0, le=MAX_INTEGER, description="Seconds until the app must listen; 0: the service's default."
    )
    env_file: EnvFile = Field(
        default="",
        description='A file among `files` with lines NAME=VALUE, such as ".env": its variables are set too, and `env` '
        "wins over them. Empty: none.",
    )
    protocol: Protocol = Field(
        default=Protocol.HTTP,
        strict=False,
        description="What the app speaks on `port`. h2c: HTTP/2 without TLS, such as gRPC.",
    )
    root: Root = Field(
        default="",
        description="Folder of the code in which its commands run, and in which its Procfile and its lists of "
        "dependencies are, such as an app of a monorepo. Empty: all of the code.",
    )
    processes: Processes | None = Field(
        default=None,
        description="Of apps and workers: commands that run beside its own, by name, each in a sandbox of the same "
        "size with the same environment and disk. Left out: the other lines of a file named Procfile. {}: none.",
    )
    scale: Scale = Field(default_factory=dict[str, int], description="Sandboxes of a further process; left out: 1.")
    packages: list[Package] = Field(
        default_factory=list,
        max_length=MAX_PACKAGES,
        description="Names of Debian packages that it needs, besides those in a file apt.txt or Aptfile.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _has_code(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Require either files or a source."""
        is_required = cls.code_is_required and not _is(value, JobType.SANDBOX)
        return with_field_errors(_code_errors(value, is_required), lambda: handler(value))


class Cost(View):
    """Costs so far. ``hourly_rate`` while it runs, with 4 digits; ``runtime_hours``; ``cost`` with 2 digits."""

    currency: str
    hourly_rate: float
    runtime_hours: float
    cost: float


class ShownResources(View):
    """Resources: vCPU, and GB (2^30 bytes) of memory and disk."""

    cpu: float
    memory: float
    disk: float


class Detected(View):
    """Findings of detection: the framework by its name, the reason, and sentences about unused files."""

    framework: str
    reason: str
    notes: list[str]


class ShownSettings(View):
    """Settings of a version, as a builder and a version show them."""

    entrypoint: str
    port: int
    env: dict[str, str]
    resources: ShownResources
    isolation: Isolation
    credentials: list[str]
    require_qa: bool
    install_scripts: bool
    build: str
    release: str
    start_timeout: int
    protocol: Protocol
    root: str
    packages: list[str]
    env_file: str
    env_file_values: dict[str, str]
    fixed_port: bool
    known_port: int
    detected: Detected | None
    processes: dict[str, str]


class ProcessState(View):
    """A process of an app: its sandboxes that should run and that do, and its restarts after crashes in this run.

    ``state`` is ``running``, ``starting``, ``restarting``, ``failed`` (it crashed too often) or ``stopped``.
    """

    name: str
    command: str
    scale: int
    running: int
    state: str
    restarts: int


class BuilderHead(View):
    """A builder's id, name, status and addresses: the first fields of its answer."""

    uuid: str
    name: str
    status: Status
    preview_url: str
    service_token: str


class Builder(ShownSettings, BuilderHead):
    """A builder with its current version.

    ``service_token`` is in full for tokens that may write; others see ``…`` and its end.
    ``env_file_values`` are the variables of the file ``env_file``; ``env`` wins over them.
    ``port`` is the one on which its app was found; a ``fixed_port`` was given. ``known_port`` is the default of its
    framework, 0 if unknown. ``detected`` is what was found in the code where the request gave no entrypoint, else
    null.
    ``needs_restart``: it runs with credentials that were changed since it started.
    ``last_backup_error`` is null unless the last backup failed or is damaged. ``disk_released_at`` is when one that
    never came up gave its disk back; its next start makes a new one. ``member`` is the member of the cluster on which
    it was last started, empty on a single machine.
    ``review_passed`` and ``qa_passed`` are null until that gate has judged the version. ``domains`` are its custom
    domains, whatever their state.
    ``process_states`` has its own process and its further ones; it is empty without further ones.
    """

    job_type: JobType
    visibility: Visibility
    auto_stop_interval: int
    backup_interval_hours: int
    needs_restart: bool
    review_passed: bool | None
    qa_passed: bool | None
    status_reason: str
    version: int
    exit_code: int | None
    cost: Cost
    created_at: Time
    updated_at: Time
    last_active_at: Time | None
    last_backup_at: Time | None
    last_backup_error: str | None
    disk_released_at: Time | None
    member: str
    domains: list[str]
    scale: dict[str, int]
    process_states: list[ProcessState]


BuilderAnswer = Success[Builder]
BuilderPage = Page[Builder]
