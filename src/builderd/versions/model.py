"""Versions: deployed code with its settings, of which a builder runs one at a time; and files of variables.

Libraries that read ``.env`` differ; what they agree on is read
(https://github.com/motdotla/dotenv#what-rules-does-the-parsing-engine-follow): a line ``NAME=VALUE`` for each variable,
comments, ``export``, quotes of both kinds over several lines, and escapes between double quotes. ``$NAME`` stays text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from builderd.code.entrypoints import exports
from builderd.code.model import Bundle
from builderd.core.errors import ValidationFailed
from builderd.core.ids import BuilderId
from builderd.core.resources import Resources

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
    #: File of the version with variables, such as ``.env``; empty: none.
    env_file: str = ""
    #: The variables of that file, read when the version was made; ``env`` wins over them.
    env_file_values: Mapping[str, str] = field(default_factory=dict)
    #: The request gave ``port``: the app must listen there. Otherwise it gets ``port``, and may listen elsewhere.
    fixed_port: bool = False
    #: Port on which apps of its framework listen by default; 0: unknown.
    known_port: int = 0
    #: What was detected in the code where no entrypoint was given (framework, reason, notes, packages added), or empty.
    detected: Mapping[str, Any] = field(default_factory=dict)
    #: Further processes: the command of each by its name. Each sandbox of one has the version's environment and disk.
    processes: Mapping[str, str] = field(default_factory=dict)
    #: Debian packages that are installed besides those of the code's ``apt.txt``.
    packages: tuple[str, ...] = ()

    @property
    def variables(self) -> Mapping[str, str]:
        """Return all variables that the user gave: those of ``env_file``, and ``env`` over them."""
        return {**self.env_file_values, **self.env}

    @property
    def commands(self) -> str:
        """Return all commands that run the version's code, one a line: the subject of its review.

        The last line exports the variables by which interpreters run more.
        """
        folder = f"cd {shlex.quote(self.root)}" if self.root else ""
        parts = (folder, self.build, self.release, self.entrypoint, *self.processes.values(), exports(self.variables))
        return "\n".join(filter(None, parts))

    @property
    def with_gates(self) -> VersionSettings:
        """Settings without skipped gates: skipping needs a scope, so it is not inherited by the next version."""
        return replace(self, skip_review=False, skip_qa=False)

    def without_port(self) -> VersionSettings:
        """Return settings without a variable PORT that repeats ``port``; raise ``ValidationFailed`` for another one."""
        given = self.env.get("PORT", str(self.port))
        if given != str(self.port):
            raise ValidationFailed({"env.PORT": [f"is the app's port, {self.port}: set `port` instead, or as well"]})
        return replace(self, env={name: value for name, value in self.env.items() if name != "PORT"})


#: Names of all settings. Shapes have fields of the same names, the table of versions has columns.
SETTING_NAMES = tuple(one.name for one in fields(VersionSettings))
#: Settings that follow from the code, and that no request gives.
DERIVED_NAMES = frozenset({"env_file_values", "fixed_port", "known_port", "detected"})


@dataclass(frozen=True, slots=True)
class Version:
    """Version of a builder; ``number`` counts from 1.

    ``layer_key`` is None until it was planned, and ``NO_LAYER`` where none is needed. ``build_key`` names the layer
    with what its build command made, None before. ``released`` is True once its release command has succeeded on the
    builder's disk.

    ``review_passed`` and ``qa_passed`` are None until their gate has judged this version. ``review_key`` names the
    report that the first stands on, and ``review_until`` is when a finding that was accepted for it is not accepted
    any more. ``failure_code`` is the stage's error that a failed one met. ``rolled_back_to`` is the number of the
    version whose code and settings it has again. ``adopted_port`` is where its app was found to listen, if not on the
    port of its settings. ``fresh_since`` is the number of the builder's version that was last
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
    adopted_port: int | None = None

    @property
    def port(self) -> int:
        """Port to which its preview leads."""
        return self.adopted_port or self.settings.port

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


#: Most further processes of a version, and most sandboxes of one of them.
MAX_PROCESSES = MAX_SCALE = 10
PROCESS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
#: Names that mean something else: the process that visitors reach, and the command before a version takes over.
RESERVED_PROCESSES = {"web": "entrypoint", "release": "release"}


def process_errors(processes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (process, reason) for each further process to reject; an empty name where they are too many."""
    if len(processes) > MAX_PROCESSES:
        yield "", f"has {len(processes)} further processes: an app has at most {MAX_PROCESSES} beside its own command"
    for name, command in processes.items():
        if not PROCESS_NAME.fullmatch(name):
            yield name, "a process's name has at most 32 letters, digits, _ and -, and begins with a letter or digit"
        elif name in RESERVED_PROCESSES:
            yield name, f"is no further process: give its command as {RESERVED_PROCESSES[name]}"
        elif why := entrypoint_error(command):
            yield name, why


def scale_error(name: str, number: int, processes: Mapping[str, str]) -> str | None:
    """Return the reason to reject a number of sandboxes for a process of these, or None."""
    if name not in processes:
        known = ", ".join(processes) or "none"
        return f"is no further process of the app (it has: {known}); its own command runs once"
    return None if 0 <= number <= MAX_SCALE else f"must be from 0 to {MAX_SCALE}"


def scaled(scale: Mapping[str, int], *processes: Mapping[str, str]) -> dict[str, int]:
    """Return the number of sandboxes of each of these processes: as in ``scale``, 1 of a new one."""
    return {name: scale.get(name, 1) for some in processes for name in some}


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


#: Faulty lines that one error names.
MAX_NAMED = 10

BAD_NAME = ", with only letters, digits and _ in the name, and no digit first"
_NAME = re.compile(r"[ \t]*(?:export[ \t]+)?(?P<name>[^\s=#'\"]+)[ \t]*=[ \t]*")
_QUOTED = re.compile(r"'(?P<plain>[^']*)'|\"(?P<escaped>(?:[^\"\\]|\\.)*)\"", re.DOTALL)
_END = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
#: A comment after a value follows a space: `a#b` is a value.
_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#")


@dataclass(slots=True)
class EnvFile:
    """Variables of a file. ``errors`` say what is wrong, each with its line; ``ignored`` are set by the platform."""

    values: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def read_env_file(bundle: Bundle, path: str) -> Mapping[str, str]:
    """Return the variables of the bundle's file; none for an empty path.

    Raises ``ValidationFailed`` for a path without a file, and for faulty lines with their numbers.
    """
    if not path:
        return {}
    file = bundle.file(path)
    if file is None:
        raise ValidationFailed({"env_file": [f'names a file that is not in files: {path} (no file: "env_file": "")']})
    if file.size > MAX_ENV_BYTES:
        raise ValidationFailed({"env_file": [f"{path} must be at most {MAX_ENV_BYTES} bytes long: it has {file.size}"]})
    try:
        text = file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValidationFailed({"env_file": [f"{path}, line {line}: must be text in UTF-8"]}) from None
    found = parse(text)
    if found.errors:
        raise ValidationFailed({"env_file": [f"{path}, {one}" for one in found.errors]})
    return found.values


def ignored_names(bundle: Bundle, path: str) -> Sequence[str]:
    """Return the variables of a file that was read already that the platform sets itself."""
    file = bundle.file(path) if path else None
    return parse(file.content.decode("utf-8-sig", "replace")).ignored if file is not None else []


def parse(text: str) -> EnvFile:
    """Return the variables of a file's text; of a name that occurs twice, the last one. Stops at the tenth error."""
    found, text, position, line = EnvFile(), text.replace("\r\n", "\n"), 0, 1
    while position < len(text) and len(found.errors) < MAX_NAMED:
        end = _take(text, position, line, found)
        line += text.count("\n", position, end)
        position = end
    return found


def _unquoted(quoted: re.Match[str]) -> str:
    if quoted["plain"] is not None:
        return quoted["plain"]
    return _ESCAPE.sub(lambda one: _ESCAPED.get(one[1], one[1] if one[1] in '"\\$' else one[0]), quoted["escaped"])


def _take(text: str, start: int, line: int, found: EnvFile) -> int:
    """Take the line that begins at ``start`` (with quotes, more than one), and return where the next begins."""
    if (blank := _END.match(text, start)) is not None:
        return blank.end()
    next_line = text.find("\n", start) + 1 or len(text)
    match = _NAME.match(text, start, next_line)
    if match is None or not ENV_NAME.fullmatch(match["name"]):
        why = "must be NAME=VALUE" + (BAD_NAME if match is not None else "")
        # The line itself is not shown: it may have a secret.
        found.errors.append(f"line {line}: {why}")
        return next_line
    name, value, end = match["name"], text[match.end() : next_line].rstrip("\n"), next_line
    if value[:1] in ("'", '"'):
        quoted = _QUOTED.match(text, match.end())
        closed = _END.match(text, quoted.end()) if quoted is not None else None
        if quoted is None or closed is None:
            found.errors.append(f"line {line}: the value of {name} has no closing {value[0]}, or text after it")
            return next_line
        value, end = _unquoted(quoted), closed.end()
    else:
        value = _COMMENT.split(value, maxsplit=1)[0].strip()
    if name in PLATFORM_ENV:
        # As with every library that reads such files: what is set already stays.
        found.ignored.append(name)
    elif (fault := env_error(name, value)) is not None:
        found.errors.append(f"line {line}: {name[:40]}: {fault}")
    else:
        found.values[name] = value
    return end
