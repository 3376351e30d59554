"""Versions: deployed code with its settings; a builder runs one version at a time."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum

from builderd.domain.ids import BuilderId
from builderd.domain.resources import Resources

DEFAULT_PORT = 8000
#: The layer key of a version that asks for no dependencies.
NO_LAYER = ""
MAX_ENTRYPOINT_BYTES = 4096
#: The build key of a version without a build command.
NO_BUILD = ""
#: The kernel takes 128 KiB as one string of an environment (MAX_ARG_STRLEN), the name included.
MAX_ENV_NAME_BYTES = 1_000
MAX_ENV_VALUE_BYTES = 100_000
#: All variables together: the kernel takes 2 MiB of arguments and environment at the usual stack limit of 8 MiB.
MAX_ENV_BYTES = 1_000_000
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Set by the platform itself in every sandbox, and so refused in ``env``.
PLATFORM_ENV = frozenset({"SERVICE_TOKEN", "BUILDER_UUID", "BUILDER_NAME", "PREVIEW_URL", "PORT", "BUILDERD_URL"})


class Isolation(StrEnum):
    #: A container under a user namespace, seccomp and its own network.
    STANDARD = "standard"
    #: gVisor: the app's system calls are answered by a kernel in user space.
    STRONG = "strong"


class Protocol(StrEnum):
    """Protocol that the preview speaks with the app on its port."""

    #: HTTP/1.1, with WebSockets.
    HTTP = "http"
    #: HTTP/2 without TLS, by prior knowledge, as gRPC servers speak it.
    H2C = "h2c"


class VersionStatus(StrEnum):
    #: Being reviewed, installed or started, or due to be with the next start.
    PENDING = "pending"
    #: It has been up at least once (or, for a job, its command has started).
    DEPLOYED = "deployed"
    #: A stage failed before it was ever up, or it was given up, or another came before it was ever started.
    FAILED = "failed"
    #: Older than those that are kept: its files are gone, and it is in no list.
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class VersionSettings:
    """Settings of a version: all inputs of its sandbox except the files."""

    entrypoint: str
    port: int = DEFAULT_PORT
    env: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    isolation: Isolation = Isolation.STANDARD
    credentials: tuple[str, ...] = ()
    skip_review: bool = False
    skip_qa: bool = False
    require_qa: bool = False
    install_scripts: bool = False
    #: Command that makes more of the files before the version starts; empty: none.
    build: str = ""
    #: Command that runs once before the version takes over, on its disk; empty: none.
    release: str = ""
    #: Standard input of a job.
    stdin: str = ""
    #: Seconds until the app must listen; 0: the service's default.
    start_timeout: int = 0
    protocol: Protocol = Protocol.HTTP
    #: Folder of the code, such as an app of a monorepo, in which the commands run; empty: all of the code.
    root: str = ""
    #: File of the version that holds variables, such as ``.env``; empty: none.
    env_file: str = ""
    #: The variables of that file, read when the version was made; ``env`` wins over them.
    env_file_values: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> Mapping[str, str]:
        """Return all variables that the user gave: those of ``env_file``, and ``env`` over them."""
        return {**self.env_file_values, **self.env}

    @property
    def commands(self) -> str:
        """Return all commands that run the version's code, one a line: the subject of its review."""
        folder = f"cd {shlex.quote(self.root)}" if self.root else ""
        return "\n".join(one for one in (folder, self.build, self.release, self.entrypoint) if one)

    @property
    def with_gates(self) -> VersionSettings:
        """Settings without skipped gates: skipping needs a scope, so it is not inherited by the next version."""
        return replace(self, skip_review=False, skip_qa=False)


#: Names of all settings. Shapes have fields of the same names, the table of versions has columns.
SETTING_NAMES = tuple(one.name for one in fields(VersionSettings))
#: Settings that follow from the code, and that no request gives.
DERIVED_NAMES = frozenset({"env_file_values"})


@dataclass(frozen=True, slots=True)
class Version:
    """Version of a builder; ``number`` counts from 1.

    ``layer_key`` is None until it was planned, and ``NO_LAYER`` where none is needed. ``build_key`` names the layer
    with what its build command made, None before. ``released`` is True once its release command has succeeded on the
    builder's disk.

    ``review_passed`` and ``qa_passed`` are None until their gate has judged this version. ``review_key`` names the
    report that the first stands on, and ``review_until`` is when a finding that was accepted for it is not accepted
    any more. ``failure_code`` is the stage's error that a failed one met. ``rolled_back_to`` is the number of the
    version whose code and settings it has again. ``fresh_since`` is the number of the builder's version that was last
    to be installed afresh: from that one on its layers are not those that were made before.
    """

    builder_id: BuilderId
    number: int
    bundle_hash: str
    settings: VersionSettings
    created_by: str
    created_at: datetime
    status: VersionStatus = VersionStatus.PENDING
    status_reason: str = ""
    layer_key: str | None = None
    review_passed: bool | None = None
    qa_passed: bool | None = None
    failure_code: str | None = None
    rolled_back_to: int | None = None
    fresh_since: int | None = None
    review_key: str | None = None
    review_until: datetime | None = None
    build_key: str | None = None
    released: bool = False

    @property
    def release_due(self) -> bool:
        """Return True if its release command must run before it starts."""
        return bool(self.settings.release) and not self.released

    def reviewed(self, now: datetime) -> bool | None:
        """Return the review's verdict at ``now``; None: not reviewed, or the review was skipped."""
        if self.review_passed and self.review_until is not None and self.review_until <= now:
            return False
        return self.review_passed

    def review_due(self, now: datetime) -> bool:
        """Return True if it must be reviewed before its start."""
        return not self.settings.skip_review and not self.reviewed(now)


def env_error(name: str, value: str) -> str | None:
    """Return the reason to reject a variable, or None."""
    if not ENV_NAME.fullmatch(name):
        return "a name has letters, digits and _ only, and does not start with a digit"
    if len(name) > MAX_ENV_NAME_BYTES:
        return f"a name must be at most {MAX_ENV_NAME_BYTES} bytes long"
    if name in PLATFORM_ENV:
        return "is set by the platform itself: choose another name"
    return text_error(value, MAX_ENV_VALUE_BYTES)


def env_size_error(env: Mapping[str, str]) -> str | None:
    """Return the reason to reject the variables as a whole, or None."""
    size = sum(len(name) + len(value.encode(errors="surrogatepass")) + 2 for name, value in env.items())
    return f"must be at most {MAX_ENV_BYTES} bytes long in all" if size > MAX_ENV_BYTES else None


def entrypoint_error(entrypoint: str) -> str | None:
    """Return the reason to reject an entrypoint, or None."""
    if not entrypoint.strip():
        return "must not be blank: give the command that starts the app"
    return text_error(entrypoint, MAX_ENTRYPOINT_BYTES)


def stage_command_error(command: str) -> str | None:
    """Return the reason to reject a command for the build or the release, or None."""
    return text_error(command, MAX_ENTRYPOINT_BYTES)


def text_error(text: str, limit: int) -> str | None:
    """Return the reason that a text cannot be one string of a process of at most ``limit`` bytes, or None."""
    if "\0" in text:
        return "must not contain a NUL character"
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode text"
    return f"must be at most {limit} bytes long" if len(encoded) > limit else None
