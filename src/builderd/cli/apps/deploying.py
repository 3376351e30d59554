"""``builderd init``, ``schema``, ``deploy`` and ``run``.

A call that deploys a folder has a key, which is kept beside the folder until the call is answered.
"""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builderd.builders.model import NAME
from builderd.cli.apps.lifecycle import show_stage
from builderd.cli.apps.project import FILE, JOB, KnownCode, Pending, Project, State, file_schema, fingerprint
from builderd.cli.apps.session import ActionRequired, Exit, Session, command, shown
from builderd.cli.group import printable
from builderd.client.errors import (
    ApiError,
    BuilderdError,
    DeploymentFailed,
    NoAnswer,
    NotFound,
    TooLarge,
    Unavailable,
    ValidationFailed,
)
from builderd.client.folders import Folder, read_folder
from builderd.client.models import LogLine
from builderd.client.retries import ended_by_machine, new_key
from builderd.code.detection.detect import detect
from builderd.code.detection.model import Detected
from builderd.code.detection.project import PROCFILE
from builderd.core.resources import size_text
from builderd.schemas.builders import NewBuilder

if TYPE_CHECKING:
    from builderd.client._sync.builder import Builder


class Sending:
    """A folder's code on its way to the service; the same command resumes it."""

    def __init__(self, session: Session, folder: Folder, state: State) -> None:
        self._session = session
        self._folder = folder
        self._state = state

    def resumed(self, mark: str, what: str) -> Pending | None:
        """Return the unanswered call of the same code and settings, and say that it is resumed."""
        pending = self._state.pending(mark)
        if pending is not None:
            upload = not self._folder.fits_json and pending.upload_id is None and pending.stored is None
            self._session.say(
                "Resuming the upload that was interrupted."
                if upload
                else f"Resuming the {what} whose answer did not arrive."
            )
        return pending

    def send_code(self, pending: Pending) -> None:
        """Upload code that is too large for JSON, and write the call down before it is sent."""
        if not self._folder.fits_json and pending.upload_id is None:

            def begun(upload_url: str) -> None:
                # Kept first: after a kill, the same command goes on with the upload.
                pending.upload_url = upload_url
                self._state.keep(pending)

            pending.upload_id = self._session.client.uploads.send_folder(
                self._folder, self._progress, upload_url=pending.upload_url, on_begin=begun
            )
        self._state.keep(pending)

    def changes(self, pending: Pending) -> dict[str, Any] | None:
        """Return what has changed since the code that the builder has, as the client takes it.

        None where all is sent: small code, code of which the service knows nothing, and large changes.
        """
        if self._folder.fits_json or pending.builder is None or pending.upload_url is not None:
            return None
        known = self._state.known_code(self._session.service()[0], pending.builder)
        if known is None or pending.stored not in (None, known.bundle):
            return None
        changed = self._folder.changed_since(known.files)
        if not changed.fits_json:
            return None
        if pending.stored is None:
            count = len(changed.files)
            self._session.say(f"  {count} changed: {size_text(changed.size)}. The service has the rest.")
        pending.stored = known.bundle
        removed = sorted(known.files.keys() - self._folder.digests.keys())
        stored = {"bundle": known.bundle, "remove": removed, "result": self._folder.bundle}
        return {"stored": stored, "files": changed.contents() or None}

    def know(self, builder: str | None) -> None:
        """Write down that the builder has this code. Small code is always sent as a whole."""
        if builder is not None and not self._folder.fits_json:
            service = self._session.service()[0]
            self._state.keep_known(KnownCode(service, builder, self._folder.bundle, self._folder.digests))

    def code(self, pending: Pending) -> dict[str, Any]:
        """Return the code as the client takes it."""
        return {"upload_id": pending.upload_id} if pending.upload_id else {"path": self._folder}

    def answered(self, pending: Pending) -> None:
        """Drop what resumes the call, its upload too: a tenant has only a few at a time."""
        self._state.forget()
        if pending.upload_id is not None:
            with suppress(BuilderdError):
                self._session.client.uploads.delete(pending.upload_id)

    def _progress(self, sent: int, total: int) -> None:
        if sys.stderr.isatty() and not self._session.as_json:
            click.echo(
                f"\r  upload   {size_text(sent)} of {size_text(total)}" + ("\n" if sent == total else ""),
                nl=False,
                err=True,
            )


@contextmanager
def _job(
    session: Session, folder: Folder, state: State, options: Mapping[str, Any], name: str | None, made_up: str
) -> Iterator[Builder]:
    """Yield a job, begun now or by the same command before. What resumes it goes where the block ends well.

    ``made_up`` is the name of a new one. Of several at the same time in one folder only the first can be resumed: the
    others are jobs of their own.
    """
    create, lock = session.client.builders.create, state.claim()
    if lock is None:
        yield create(name or made_up, folder, **options)
        return
    with lock:
        sending = Sending(session, folder, state)
        mark = fingerprint(session.service()[0], name, options, folder.bundle)
        earlier = sending.resumed(mark, "job")
        pending = earlier or Pending(new_key(), mark, name=name or made_up)
        while True:
            sending.send_code(pending)
            try:
                code, key = sending.code(pending), pending.key
                builder = create(pending.name or made_up, **code, idempotency_key=key, **options)
                builder = session.client.builders.get(builder.uuid) if earlier else builder
                break
            except ApiError as error:
                # With the same key, an outcome would be the answer again.
                if isinstance(error, Unavailable) and not ended_by_machine(error):
                    raise
                sending.answered(pending)
                # It was deleted meanwhile: the same command begins another one.
                if earlier is None or not isinstance(error, NotFound):
                    raise
                earlier, pending = None, Pending(new_key(), mark, name=name or made_up)
        yield builder
        sending.answered(pending)


#: Files and folders left out that are listed, unless all are asked for.
SHOWN = 5

folder_argument = click.argument(
    "directory", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)


@command("init")
@folder_argument
@click.option("--name", help="Name of the builder.  [default: the folder's]")
@click.option("--entrypoint", help="Command that starts the app.  [default: what is found]")
@click.option("--force", is_flag=True, help="Replace a builder.toml that is there.")
def init(session: Session, directory: Path, name: str | None, entrypoint: str | None, force: bool) -> None:
    """Write a builder.toml for a folder: its name and what starts it."""
    project = Project.load(directory)
    if project.settings and not force:
        raise click.UsageError(f"{directory / FILE} is there already: change it, or use --force")
    settings = {"name": name or project.default_name(), **({"entrypoint": entrypoint} if entrypoint else {})}
    project.write(settings)
    if not entrypoint:
        found = detect(read_folder(directory).project)
        if isinstance(found, Detected):
            _print_found(session, found)
        else:
            session.say(f"{printable(found.reason)}\nAdd an entrypoint to {directory / FILE}.")
    session.result({"file": str(directory / FILE), **settings}, f"Wrote {directory / FILE}.")


@command("schema")
def schema(session: Session) -> None:
    """Print the JSON schema of builder.toml."""
    session.as_json = True
    session.result(file_schema())


#: Settings of an app that a job of the same folder does not have.
NOT_OF_JOBS = {"auto_stop_interval", "visibility", "release"}


@command("deploy")
@folder_argument
@click.option("--name", help="Name of the builder.  [default: of builder.toml, or the folder's]")
@click.option("--entrypoint", help="Command that starts the app.  [default: of builder.toml, or what is found]")
@click.option("--build", help="Command that builds it before its start; '' for none.  [default: what is found]")
@click.option("--env-file", metavar="PATH", help="File of the code with variables, such as .env; '' for none.")
@click.option("--root", metavar="FOLDER", help="Folder of the code in which it runs, such as apps/web of a monorepo.")
@click.option("--release", help="Command that runs once before it takes over; '' for none.  [default: the Procfile's]")
@click.option("--fresh", is_flag=True, help="Install the dependencies again.")
@click.option("--list", "only_list", is_flag=True, help="List what would be sent and what is left out; send nothing.")
@click.option("--yes", is_flag=True, help="Take what is found for the start without asking.")
@click.option("--skip-review", is_flag=True, help="Leave the review out (needs the scope skip-gates).")
@click.option("--skip-qa", is_flag=True, help="Leave QA out (needs the scope skip-gates).")
def deploy(session: Session, directory: Path, name: str | None, entrypoint: str | None, **flags: Any) -> None:
    """Deploy a folder: create a builder, or a new version of the one there is. Prints its URL.

    Ctrl-C leaves the deployment going. The same command resumes it, also after a lost connection: it never makes a
    second builder.
    """
    project = Project.load(directory)
    given = {name: value for name, value in flags.items() if value not in (None, False)}
    options = project.options | {name: value for name, value in given.items() if name in NewBuilder.model_fields}
    folder = _folder(project, options)
    if flags["only_list"]:
        sent = [{"path": file.path, "size": file.size} for file in folder.files]
        left_out = [{"path": one.path, "rule": one.rule} for one in folder.left_out]
        lines = [f"{size_text(file.size):>9}  {file.path}" for file in folder.files]
        lines += [f"{'left out':>9}  {one.path}  ({one.rule})" for one in folder.left_out]
        session.result({"files": sent, "left_out": left_out}, "\n".join(lines))
        return
    start = _start(session, project, _below(folder, options.get("root")), entrypoint, flags["yes"])
    if start:
        options["entrypoint"] = start
    chosen = name or project.name or project.default_name()
    if not NAME.fullmatch(chosen):
        raise click.UsageError(
            f"{chosen!r} is no name: 1 to 63 lower-case letters, digits and hyphens, not at its ends"
        )
    if not project.settings:
        # The answers are asked for once.
        project.write({"name": chosen, **({"entrypoint": start} if start else {})})
        session.say(f"Wrote {project.root / FILE}.")
        folder = _folder(project, options)
    _print_sent(session, folder)
    _Deployment(session, project, folder, chosen, options, flags["fresh"]).run()


def _folder(project: Project, options: Mapping[str, Any]) -> Folder:
    return read_folder(project.root, project.settings.get("ignore", ()), options.get("env_file", ""))


def _below(folder: Folder, root: Any) -> Folder:
    """Return the folder in which the code runs."""
    if not isinstance(root, str) or not root:
        return folder
    below = folder.below(root)
    if not below.files:
        raise click.UsageError(f"{folder.root / root} has no files that are sent: --root names a folder of the code")
    return below


class _Deployment(Sending):
    """One deployment from a folder, with the key that is kept beside it."""

    def __init__(
        self, session: Session, project: Project, folder: Folder, name: str, options: dict[str, Any], fresh: bool
    ) -> None:
        super().__init__(session, folder, State(project.root))
        self._name = name
        self._options = options
        self._fresh = fresh
        self._began = False

    def run(self) -> None:
        pending = self._pending()
        try:
            builder = self._send(pending)
        except KeyboardInterrupt:
            if self._began:
                self._session.say(f"\nThe deployment goes on. Follow it: builderd logs -f {self._name}")
                self._session.say("Run the same command again to resume it.")
            raise
        except ApiError as error:
            self._session.know(error.builder, self._name)
            # An answer, though a bad one: with the same key, it would be the answer again. A 503 is not final, unless
            # the deployment had begun.
            has_failed = isinstance(error, DeploymentFailed) or ended_by_machine(error)
            if has_failed or not isinstance(error, Unavailable):
                self.answered(pending)
            if has_failed:
                self.know(pending.builder or error.builder)
            raise
        except NoAnswer:
            self._session.say("The answer was lost. Run the same command again: it resumes this deployment.")
            raise
        self.answered(pending)
        self.know(builder.uuid)
        self._session.result(builder, builder.url if builder.data.job_type in ("always_on", "static") else builder.name)

    def _pending(self) -> Pending:
        url, _, _ = self._session.service()
        mark = fingerprint(url, self._name, self._options, self._fresh, self._folder.bundle)
        if (pending := self.resumed(mark, "deployment")) is not None:
            return pending
        try:
            existing = self._session.client.builders.get(self._name).uuid
        except NotFound:
            existing = None
        return Pending(new_key(), mark, existing)

    def _send(self, pending: Pending) -> Any:
        changes = self.changes(pending)
        if changes is not None:
            self._state.keep(pending)
            # Refused: the version is gone, what was known of it is wrong, or the service is an older one. A mistake of
            # the settings is refused again.
            with suppress(ValidationFailed, TooLarge):
                return self._deploy(pending, changes)
            pending.key, pending.stored = new_key(), None
        self.send_code(pending)
        return self._deploy(pending, self.code(pending))

    def _deploy(self, pending: Pending, code: Mapping[str, Any]) -> Any:
        builders = self._session.client.builders
        on_stage = partial(show_stage, self._session)
        common: dict[str, Any] = {"idempotency_key": pending.key, "on_stage": on_stage, "on_begin": self._begin}
        if pending.builder is None:
            return builders.create(self._name, **code, **common, **self._options)
        options = {name: value for name, value in self._options.items() if name != "job_type"}
        return builders.get(pending.builder).deploy(**code, **common, fresh=self._fresh, **options)

    def _begin(self, _: str) -> None:
        self._began = True


def _start(session: Session, project: Project, folder: Folder, entrypoint: str | None, yes: bool) -> str:
    """Return the given command, or "" where the service starts what is found in the code, which is shown and confirmed.

    Raises ``ActionRequired`` where nothing starts it.
    """
    if given := entrypoint or project.settings.get("entrypoint"):
        return str(given)
    found, where = detect(folder.project, project.settings.get("job_type")), shlex.quote(str(project.root))
    if not isinstance(found, Detected):
        if project.settings.get("job_type") in ("static", "sandbox"):
            return ""
        apps = [f"builderd deploy {where} --root {shlex.quote(root)}" for root in found.roots]
        raise ActionRequired(printable(found.reason), *apps, f"builderd deploy {where} --entrypoint 'COMMAND'")
    _print_found(session, found)
    # Once there is a builder.toml, the command was confirmed.
    if yes or project.settings or found.framework == PROCFILE:
        return ""
    question = f"Start the code with `{printable(found.entrypoint)}`?"
    if not session.confirm(
        question, f"builderd deploy {where} --yes", f"builderd deploy {where} --entrypoint 'COMMAND'", default=True
    ):
        raise click.UsageError("name the command with --entrypoint")
    return ""


def _print_found(session: Session, found: Detected) -> None:
    session.say(f"Found {found.framework}: {printable(found.reason)}.")
    commands = {"build": found.build, "release": found.release, "start": found.entrypoint, **found.processes}
    for label, text in commands.items():
        if text:
            session.say(f"  {label:<8} {printable(text)}")
    for note in found.notes:
        session.say(f"  note: {printable(note)}")


def _print_sent(session: Session, folder: Folder) -> None:
    count = len(folder.files)
    session.say(f"Sending {count} file{'' if count == 1 else 's'}, {size_text(folder.size)}.")
    for one in folder.left_out[:SHOWN]:
        session.say(f"  left out: {one.path} ({one.rule})")
    if len(folder.left_out) > SHOWN:
        session.say(f"  and {len(folder.left_out) - SHOWN} more: builderd deploy --list shows all")


@command("run")
@folder_argument
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", help="Name of the job.  [default: made of the folder's]")
@click.option("--output", "outputs", multiple=True, metavar="PATH", help="Fetch this file or folder at the end.")
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Send standard input to the command.")
@click.option("--keep", is_flag=True, help="Do not delete the job at the end.")
def run(session: Session, directory: Path, args: Sequence[str], name: str | None, **flags: Any) -> None:
    """Run a folder's code as a job: show its log, fetch its output, and exit with its code.

    ARGS are the command; left out, that of builder.toml or what is found. The same command again, after Ctrl-C, a kill
    or a lost connection, goes on with the job that it has begun.
    """
    project = Project.load(directory)
    folder = _folder(project, project.options)
    below = _below(folder, project.options.get("root"))
    start = _start(session, project, below, shlex.join(args), yes=True)
    options = {key: value for key, value in project.options.items() if key not in NOT_OF_JOBS}
    if flags["with_stdin"]:
        options["stdin"] = sys.stdin.read()
    options |= {"job_type": "one_time", **({"entrypoint": start} if start else {})}
    _print_sent(session, folder)
    made_up = f"{(project.name or project.default_name())[:28].strip('-')}-{uuid.uuid4().hex[:8]}"
    with _job(session, folder, State(project.root, JOB), options, name, made_up) as builder:
        _follow(session, builder, flags["outputs"])
        if not flags["keep"]:
            builder.delete(purge=True)
    ended = builder.exit_code
    if builder.status == "failed" and ended is None:
        session.say(f"The job failed: {builder.data.status_reason}")
    if session.as_json:
        session.row({"exit_code": ended, "status": builder.status, "name": builder.name}, "")
    code = Exit.FAILED if ended is None else ended
    if code:
        raise SystemExit(code)


def _follow(session: Session, builder: Builder, outputs: Sequence[str]) -> None:
    """Show a job's log until its end, and fetch what it has made."""
    try:
        builder.wait(finished=True, on_line=partial(_print_line, session), interval=0.5)
        for path in outputs:
            count = builder.files.download(path, Path(path).name)
            session.say(f"Fetched {path} ({count} file{'' if count == 1 else 's'}).")
    except KeyboardInterrupt:
        session.say(f"\nThe job goes on. Follow it: builderd logs -f {builder.name}")
        session.say("Run the same command again to wait for it.")
        raise


def _print_line(session: Session, line: LogLine) -> None:
    if session.as_json:
        session.row(line, "")
    elif line.stream not in ("build", "release"):
        is_error = line.stream == "stderr"
        click.echo(shown(line.text, sys.stderr if is_error else sys.stdout), err=is_error)
