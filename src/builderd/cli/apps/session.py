"""Session of a command for apps: the service in use, the output contract, and exit codes.

Standard output has the result alone: text, or with ``--json`` one JSON value (of a stream, one a line), an error
included. Progress and questions go to standard error, and nothing is asked without a terminal.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from builderd.builders.model import NAME
from builderd.cli.group import printable
from builderd.client.errors import (
    ApiError,
    BuilderdError,
    DeploymentFailed,
    NoAnswer,
    NoCapacity,
    TimedOut,
    Unauthenticated,
)

if TYPE_CHECKING:
    from builderd.client._sync.builder import Builder
    from builderd.client._sync.client import Builderd
    from builderd.client.retries import Retry

#: Seconds; shorter waits before a call is sent again are not reported.
LEAST_REPORTED_WAIT = 2.0


class Exit(IntEnum):
    """Exit codes. ``exec`` and ``run`` pass on that of the command they ran."""

    FAILED = 1
    USAGE = 2
    NOT_SIGNED_IN = 3
    INPUT_NEEDED = 4
    UNREACHABLE = 5
    TIMEOUT = 124
    INTERRUPTED = 130


class ActionRequired(Exception):
    """A person must decide or enter something, and there is no terminal. ``next`` are commands that need no answer."""

    def __init__(self, reason: str, *following: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.next = list(following)


class NotSignedIn(Exception):
    """There is no service to talk to."""


@dataclass(slots=True)
class Session:
    """One command's service and output."""

    as_json: bool = False
    context: str | None = None
    timeout: float | None = None
    #: File with further certificates, in place of the context's.
    ca: str | None = None
    _client: Builderd | None = None
    #: Names of builders by uuid, for the commands that errors advise.
    _names: dict[str, str] = field(default_factory=dict)

    # The service

    @property
    def client(self) -> Builderd:
        """The client: of ``--context``, else of ``BUILDERD_URL`` and ``BUILDERD_TOKEN``, else of the context in use."""
        if self._client is None:
            from builderd.client._sync.client import Builderd  # noqa: PLC0415 (help and usage errors need no HTTP)

            url, token, ca = self.service()
            self._client = Builderd(url, token, ca=ca, timeout=self.timeout, on_retry=self._report_retry)
        return self._client

    def service(self) -> tuple[str, str, str | None]:
        """Return URL, token and certificate file. Raises ``NotSignedIn``."""
        url, token, ca = self._signed_in()
        return url, token, self.ca or ca

    def _signed_in(self) -> tuple[str, str, str | None]:
        from builderd.cli.apps import contexts  # noqa: PLC0415

        url, token = os.environ.get("BUILDERD_URL", ""), os.environ.get("BUILDERD_TOKEN", "")
        if self.context is None and url and token:
            return url, token, None
        found = contexts.load().get(self.context)
        if found is None:
            raise NotSignedIn(f"there is no context {self.context!r}" if self.context else "you are not signed in")
        if self.context is not None:
            return found.url, found.token, found.ca
        # A token is for its own service: it is not sent to another one that the environment names.
        if url and url.rstrip("/") != found.url:
            raise NotSignedIn(f"BUILDERD_URL is {url}, and BUILDERD_TOKEN is not set")
        return found.url, token or found.token, found.ca

    @property
    def shows_money(self) -> bool:
        """True where costs are shown to people: the operator of the service has set prices."""
        return self.client.health().shows_money

    def builder(self, name: str | None) -> Builder:
        """Return the builder of a name or uuid; of the folder's ``builder.toml`` without one or for ``.``."""
        wanted = self.name(name)
        found = self.client.builders.get(wanted)
        self.know(found.uuid, found.name)
        return found

    def know(self, uuid: str | None, name: str) -> None:
        """Remember a builder's name."""
        if uuid:
            self._names[uuid] = name

    def next_of(self, error: BuilderdError) -> list[str]:
        """Return the commands that an error advises, with names in place of uuids."""
        # A refusal that names no builder is about the one that the command named.
        uuid = error.builder or (next(iter(self._names)) if len(self._names) == 1 else "")
        placeholder = error.builder or "NAME"
        steps = [error.next_step.replace(placeholder, self._names.get(uuid, uuid or placeholder))]
        # What frees room of the machine's limits, by name, and of the store in bytes: a stopped builder keeps its disk.
        lacking = error.data.keys() if isinstance(error, NoCapacity) else set()
        if lacking & {"disk", "free"}:
            steps.append("builderd delete NAME")
        elif lacking & {"cpu", "memory"}:
            steps.append("builderd stop NAME")
        return [step for step in steps if step]

    def name(self, name: str | None) -> str:
        """Return the name that a command is about."""
        if name not in {None, "", "."}:
            return str(name)
        from builderd.cli.apps.project import FILE, Project  # noqa: PLC0415

        project = Project.find(Path.cwd())
        if project is None or not project.name:
            raise click.UsageError(f"name a builder, or run this in a folder with a {FILE} (builderd init makes one)")
        return project.name

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    # Output

    def result(self, value: Any, text: str | None = None) -> None:
        """Print the result: the text, or the value as JSON."""
        if self.as_json:
            click.echo(json.dumps(plain(value), indent=2 if sys.stdout.isatty() else None))
        elif text is not None:
            click.echo(shown(text, sys.stdout))

    def row(self, value: Any, text: str) -> None:
        """Print one entry of a stream: a line of text, or of JSON."""
        click.echo(json.dumps(plain(value)) if self.as_json else shown(text, sys.stdout))

    def table(self, rows: Iterable[Any], columns: Columns, empty: str) -> None:
        """Print a list as a table, or as one JSON array; where it is empty, say so on standard error."""
        found = list(rows)
        if self.as_json:
            self.result(found)
        elif not found:
            self.say(empty)
        else:
            click.echo("\n".join(aligned(found, columns, self.width)))

    @property
    def width(self) -> int | None:
        """Columns of the terminal that standard output is; None for a file or a pipe, which get whole lines."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def say(self, text: str = "") -> None:
        """Report progress on standard error; not with ``--json``."""
        if not self.as_json:
            click.echo(shown(text, sys.stderr), err=True)

    def _report_retry(self, retry: Retry) -> None:
        """Report on standard error why a call waits and until when; with ``--json`` as one object there."""
        if retry.seconds < LEAST_REPORTED_WAIT:
            return
        until, error = datetime.now(UTC) + timedelta(seconds=retry.seconds), retry.error
        if self.as_json:
            body = {"status": "waiting", "seconds": retry.seconds, "until": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
            body |= {"code": _error_code(error), "message": error.message, "next": self.next_of(error)}
            click.echo(json.dumps(body), err=True)
        else:
            clock = f"{until.astimezone():%H:%M:%S}"
            self.say(f"{error.message}\nTrying again in {retry.seconds:.0f} s, at {clock}. Ctrl-C ends the wait.")

    def confirm(self, question: str, *following: str, default: bool = False) -> bool:
        """Ask on a terminal. Raises ``ActionRequired`` without one."""
        self._need_terminal(question, following)
        return click.confirm(question, default=default, err=True)

    def ask(self, question: str, *following: str, hidden: bool = False, default: str | None = None) -> str:
        """Ask for a text on a terminal. Raises ``ActionRequired`` without one."""
        self._need_terminal(question, following)
        answer: str = click.prompt(question, hide_input=hidden, default=default, err=True)
        return answer

    def _need_terminal(self, question: str, following: Sequence[str]) -> None:
        if self.as_json or not sys.stdin.isatty():
            raise ActionRequired(question, *following)


def plain(value: Any) -> Any:
    """Return a value that JSON can write."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    if hasattr(value, "data") and hasattr(value.data, "model_dump"):
        return plain(value.data)
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def run(session: Session, function: Callable[[], None]) -> None:
    """Run a command's function; end the process with the contract's exit code for each error."""
    try:
        function()
    except BuilderdError as error:
        following = session.next_of(error)
        _fail(session, exit_code_of(error), _described(error, following), _error_lines(error, following))
    except ActionRequired as needed:
        body = {"status": "action_required", "reason": needed.reason, "next": needed.next}
        _fail(session, Exit.INPUT_NEEDED, body, [f"Input needed: {needed.reason}", *_steps(needed.next)])
    except NotSignedIn as error:
        body = {"status": "error", "code": "not_signed_in", "message": str(error), "next": ["builderd login URL"]}
        _fail(session, Exit.NOT_SIGNED_IN, body, [f"Error: {error}", *_steps(["builderd login URL"])])
    except BrokenPipeError:
        raise
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(session, Exit.FAILED, {"status": "error", "code": "os_error", "message": text}, [f"Error: {text}"])
    except KeyboardInterrupt:
        raise SystemExit(Exit.INTERRUPTED) from None
    finally:
        session.close()


def _fail(session: Session, code: int, body: dict[str, Any], lines: Iterable[str]) -> None:
    if session.as_json:
        click.echo(json.dumps(body))
    else:
        for line in lines:
            click.echo(shown(line, sys.stderr), err=True)
    raise SystemExit(code)


def exit_code_of(error: BuilderdError) -> int:
    """Return the exit code of a command that ends with this error."""
    if isinstance(error, Unauthenticated):
        return Exit.NOT_SIGNED_IN
    if isinstance(error, TimedOut):
        return Exit.TIMEOUT
    return Exit.UNREACHABLE if isinstance(error, NoAnswer) else Exit.FAILED


def _described(error: BuilderdError, following: list[str]) -> dict[str, Any]:
    body: dict[str, Any] = {"status": "error", "code": _error_code(error), "message": error.message, "note": error.note}
    if isinstance(error, ApiError):
        body |= {"errors": dict(error.errors), "data": dict(error.data), "http_status": error.status}
    if isinstance(error, DeploymentFailed):
        body |= {"log_tail": error.log_tail, "stage": error.stage}
    return {**body, "request_id": error.request_id, "builder": error.builder, "next": following}


def _error_code(error: BuilderdError) -> str:
    if isinstance(error, ApiError):
        return error.code
    return "timeout" if isinstance(error, TimedOut) else "no_answer"


def _error_lines(error: BuilderdError, following: list[str]) -> Iterable[str]:
    """Yield the lines about an error: what is wrong, the log's end, and what to run next."""
    stage = f"{error.stage}: " if isinstance(error, DeploymentFailed) else ""
    yield f"{click.style('Error:', fg='red')} {stage}{printable(error.message)}"
    if isinstance(error, ApiError):
        faults = [f"{path}: {reason}" for path, reasons in error.errors.items() for reason in reasons]
        yield from (f"  {printable(fault)}" for fault in faults if fault not in error.message)
    # Most messages have the end of the log already.
    if isinstance(error, DeploymentFailed) and error.log_tail and "last lines:" not in error.message:
        yield "The log's last lines:"
        yield from (f"  {printable(line)}" for line in error.log_tail)
    if error.request_id and isinstance(error, ApiError) and error.status >= 500:
        yield f"Request id, for the service's log: {error.request_id}"
    if error.note:
        yield printable(error.note)
    yield from _steps(following)


def _steps(following: Iterable[str]) -> Iterable[str]:
    return (f"Next: {step}" for step in following)


_CA = click.Path(exists=True, dir_okay=False)


class OfFolder(click.Command):
    """Command whose first argument, a builder's name, may be left out before others: ``.`` is put in its place."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before = args[: args.index("--")] if "--" in args else args
        _, *others = (one for one in self.params if isinstance(one, click.Argument))
        with suppress(click.UsageError):  # is raised again below
            found, _, _ = self.make_parser(ctx).parse_args(list(before))
            given = {name: text for name, text in found.items() if isinstance(text, str | tuple)}
            name = given.get("name")
            if "--" in args:
                left_out = name is None
            else:
                is_other = isinstance(name, str) and not (name == "." or NAME.fullmatch(name))
                is_number = isinstance(name, str) and name.isdecimal() and others[:1] and others[0].type is click.INT
                left_out = is_other or is_number or any(one.required and not given.get(str(one.name)) for one in others)
            if others and left_out:
                args = [".", *args]
        return super().parse_args(ctx, args)


def command(usage: str, group: click.Group | None = None) -> Callable[..., click.Command]:
    """Make a command of a function whose first argument is the session.

    ``usage`` is its name and its plain arguments, such as ``end NAME [LEASE]``; others are decorators below.
    ``[NAME]`` before other arguments may be left out. A command ``list`` of a group is ``ls``, too.
    """
    name, *arguments = usage.split()

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.option("--json", "as_json", is_flag=True, help="Print the result, or the error, as JSON.")
        @click.option("--context", metavar="NAME", help="The service to use, of `builderd context list`.")
        @click.option("--timeout", type=float, metavar="SECONDS", help="Give up after so long (exit code 124).")
        @click.option("--ca", type=_CA, help="A file with a further certificate to trust; `login` keeps it.")
        @functools.wraps(function)
        def wrapped(as_json: bool, context: str | None, timeout: float | None, ca: str | None, **params: Any) -> None:
            session = Session(as_json, context, timeout, ca and os.path.abspath(ca))  # noqa: PTH100
            run(session, lambda: function(session, **params))

        made: Callable[..., None] = wrapped
        for word in reversed(arguments):
            made = click.argument(word.strip("[]").lower(), required=not word.startswith("["))(made)
        built = (group or click).command(name, cls=OfFolder if arguments[:1] == ["[NAME]"] else click.Command)(made)
        if group is not None and name == "list":
            group.add_command(alias := copy(built), "ls")
            alias.hidden = True
        return built

    return decorate


def pairs(texts: Iterable[str], option: str = "") -> dict[str, str]:
    """Return texts like ``NAME=VALUE`` as a dictionary. Raises ``UsageError``, which names the option."""
    found = [text.partition("=") for text in texts]
    for name, equals, _ in found:
        if not name or not equals:
            raise click.UsageError(f"{f'{option}: ' if option else ''}{name + equals!r} is not NAME=VALUE")
    return {name: value for name, _, value in found}


#: Least columns in which a text is wrapped: in fewer, it is left to the terminal.
LEAST_COLUMNS = 20
#: Sequences that set colour and style of the text after them.
COLOUR, RESET = re.compile(r"(\x1b\[[0-9;]*m)"), "\x1b[0m"


#: Columns of a table: their heads, and what they show of a row: an attribute, a format of one, or a function's result.
Columns = Mapping[str, str | Callable[[Any], Any]]


def aligned(rows: Sequence[Any], columns: Columns, width: int | None = None) -> list[str]:
    """Return a table's lines; the last column is not padded, and wrapped at spaces to fit into ``width``."""
    cells = [list(columns), *([_cell(row, shown) for shown in columns.values()] for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for *row, last in cells:
        begin = "".join(f"{cell:<{size}}  " for cell, size in zip(row, widths, strict=True))
        pieces = _wrapped(last, None if width is None else width - indent)
        lines += [f"{begin}{pieces[0]}".rstrip(), *(f"{'':<{indent}}{piece}" for piece in pieces[1:])]
    return [click.style(lines[0], bold=True), *lines[1:]]


def _wrapped(text: str, width: int | None) -> list[str]:
    """Return the lines of a text; a longer word, such as a URL, stays whole."""
    if width is None or width < LEAST_COLUMNS or len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def shown(text: str, out: TextIO) -> str:
    """Return text of an app, a file or a service as a stream gets it: as it is, but for a terminal without controls.

    Colours stay there. Others could set the clipboard (OSC 52) or the title, or write over what was shown before.
    """
    if not out.isatty():
        return text
    parts = COLOUR.split(text.replace("\r\n", "\n"))
    return "".join(part if at % 2 else printable(part) for at, part in enumerate(parts)) + RESET * (len(parts) > 1)


def _cell(row: Any, shown: str | Callable[[Any], Any]) -> str:
    if not isinstance(shown, str):
        value = shown(row)
    elif "{" in shown:
        value = shown.format(row)
    else:
        value = attrgetter(shown)(row)
    if value is None:
        return "-"
    if isinstance(value, list):
        return printable(",".join(value)) or "-"
    if hasattr(value, "strftime"):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return printable(next(iter(str(value).splitlines()), ""))
