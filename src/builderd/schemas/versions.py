"""Versions: requests that change a builder, and responses with its versions."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from builderd.builders.model import Visibility
from builderd.code.model import digest_error, path_error
from builderd.schemas.builders import (
    MAX_CREDENTIALS,
    MAX_INTEGER,
    Command,
    Credential,
    Detected,
    Env,
    Name,
    NewBuilder,
    Resources,
    Scale,
    ShownResources,
    ShownSettings,
)
from builderd.schemas.files import PATH_SCHEMA, FileContent, Files
from builderd.schemas.shape import JsonInt, Page, Shape, Time, View, checked_by
from builderd.versions.diffs import ChangeKind
from builderd.versions.model import (
    DERIVED_NAMES,
    SETTING_NAMES,
    Isolation,
    VersionSettings,
    VersionStatus,
)

#: Of one request: as many as an archive of code may have files.
MAX_REMOVED = 100_000


def _without_defaults(schema: dict[str, Any]) -> None:
    """Remove all defaults: an omitted field keeps its value."""
    for field in schema["properties"].values():
        field.pop("default", None)


Digest = Annotated[str, checked_by(digest_error), Field(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
RemovedPath = Annotated[str, checked_by(path_error), Field(json_schema_extra=dict(PATH_SCHEMA))]


class StoredCode(Shape):
    """Code of a kept version of this builder, which the request changes."""

    bundle: Digest = Field(description="`bundle` of a kept version: the sha256 of its files.")
    remove: list[RemovedPath] = Field(
        default_factory=list[str], max_length=MAX_REMOVED, description="Paths of its files that are taken out."
    )
    result: Digest | None = Field(
        default=None, description="The `bundle` that is to come out, without which nothing is stored. Left out: any."
    )


class NewVersion(NewBuilder):
    """New version of a builder. Omitted fields keep their values; ``files`` or a ``source`` replace all files.

    With ``stored``, ``files`` are laid over the files of a kept version instead.

    A ``build`` that is left out is found, as for a new builder, only where the builder never had another version; a
    ``release`` and ``processes`` that came from the ``Procfile`` are read from the new one.
    ``name`` and ``job_type`` cannot change. ``skip_review`` and ``skip_qa`` are false where they are left out.
    """

    code_is_required: ClassVar[bool] = False
    model_config = ConfigDict(json_schema_extra=_without_defaults)

    name: Name = Field(default="", validate_default=False, description="Cannot be changed.")
    files: Files = Field(default_factory=dict[str, FileContent], description="Left out: the files stay as they are.")

    stored: StoredCode | None = Field(
        default=None, description="Files of a kept version that stay; `files` replace or add some."
    )


class NewSettings(Shape):
    """Settings for the same code. Omitted fields keep their values."""

    model_config = ConfigDict(json_schema_extra=_without_defaults)

    env: Env = Field(default_factory=dict[str, str], description="Replaced as a whole.")
    resources: Resources = Field(default_factory=Resources, description="The disk can only grow.")
    auto_stop_interval: JsonInt = Field(default=0, ge=0, le=MAX_INTEGER, description="Minutes; 0: never.")
    backup_interval_hours: JsonInt = Field(default=0, ge=0, le=MAX_INTEGER, description="0: no backups.")
    visibility: Visibility = Field(default=Visibility.PUBLIC, strict=False)
    credentials: list[Credential] = Field(default_factory=list[str], max_length=MAX_CREDENTIALS)
    release: Command = Field(default="", description="Run once before the new version takes over; empty: none.")
    scale: Scale = Field(
        default_factory=dict[str, int], description="Sandboxes of further processes, at once; others keep theirs."
    )


class NewAutoStop(Shape):
    """Setting of auto-stop."""

    interval: JsonInt = Field(ge=0, le=MAX_INTEGER, description="Minutes without a use; 0: never.")


class NewRollback(Shape):
    """Version to roll back to."""

    version: JsonInt = Field(ge=1, le=MAX_INTEGER, description="The number of a version that was up.")


class VersionHead(View):
    """A version's number, outcome and code: the first fields of its answer."""

    version: int
    status: VersionStatus
    status_reason: str
    failure_code: str | None
    current: bool
    rolled_back_to: int | None
    bundle: str


class Version(ShownSettings, VersionHead):
    """Version of a builder with its settings.

    ``status``: ``pending`` while it is reviewed, installed and started or waits for the next start, ``deployed`` once
    it was up, ``failed`` with its ``status_reason`` and the ``failure_code`` that its call was answered with.
    ``current`` is the one that serves or starts next. ``bundle`` is the sha256 of its files.
    """

    skip_review: bool
    skip_qa: bool
    stdin: str
    review_passed: bool | None
    qa_passed: bool | None
    created_by: str
    created_at: Time


VersionPage = Page[Version]


class FileDifference(View):
    """Difference of one file: ``kind`` is ``added``, ``removed`` or ``changed``, ``lines`` a unified diff without head.

    ``compared`` is false, and ``lines`` empty, for a binary or very long file, and beyond the limits of the answer:
    5,000 lines, 1,000,000 characters and 200 files.
    """

    path: str
    kind: ChangeKind
    compared: bool
    added: int
    removed: int
    lines: list[str]


class SettingDifference(View):
    """Setting with its value in the one version and in the other."""

    name: str
    old: Any
    new: Any


class VersionDiff(View):
    """Difference of two versions. What the app wrote to its disk belongs to neither."""

    old: int
    new: int
    files: list[FileDifference]
    settings: list[SettingDifference]


#: Fields of the shapes with the code.
CODE = frozenset({"files", "source", "stored"})


def new_settings(new: NewBuilder, entrypoint: str, default_isolation: Isolation) -> VersionSettings:
    """Return the settings of a new builder, for which ``entrypoint`` was determined already."""
    copied = {name: getattr(new, name) for name in SETTING_NAMES if name not in DERIVED_NAMES}
    converted = {
        "entrypoint": entrypoint,
        "resources": new.resources.value,
        "isolation": new.isolation or default_isolation,
        "credentials": tuple(new.credentials),
        "packages": tuple(new.packages),
        "build": new.build or "",
        "release": new.release or "",
        "fixed_port": "port" in new.model_fields_set,
        "processes": new.processes or {},
    }
    return VersionSettings(**{**copied, **converted}).without_port()


def given_fields(new: NewVersion | NewSettings, without: Collection[str] = CODE) -> dict[str, Any]:
    """Return the fields that a body gives, as ``deployments.Change.of`` takes them; of ``resources`` the given ones."""
    given = {name: getattr(new, name) for name in new.model_fields_set if name not in without}
    if "resources" in given:
        given["resources"] = {name: getattr(new.resources, name) for name in new.resources.model_fields_set}
    given |= {name: tuple(given[name]) for name in ("credentials", "packages") if name in given}
    return given


def shown_settings(settings: VersionSettings, shape: type[View]) -> dict[str, Any]:
    """Return the settings that the shape has, as its fields."""
    resources = settings.resources
    converted = {
        "env": dict(settings.env),
        "env_file_values": dict(settings.env_file_values),
        "detected": Detected(**settings.detected) if settings.detected else None,
        "processes": dict(settings.processes),
        "resources": ShownResources(cpu=resources.cpu, memory=resources.memory, disk=resources.disk),
        "credentials": list(settings.credentials),
        "packages": list(settings.packages),
    }
    copied = {name: getattr(settings, name) for name in SETTING_NAMES if name in shape.model_fields}
    return {**copied, **converted}
