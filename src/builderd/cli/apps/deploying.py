"""``builderd init``, ``schema``, ``deploy`` and ``run``.

A call that deploys a folder has a key, which is kept beside the folder until the call is answered.
"""

from __future__ import annotations

import shlex
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builderd.builders.model import NAME, JobType
from builderd.cli.apps.lifecycle import served_at
from builderd.cli.apps.progress import Progress
from builderd.cli.apps.project import FIELDS, FILE, Project, file_schema, folder_of, keep_folder
from builderd.cli.apps.session import ActionRequired, Exit, Session, command, pairs, shown
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
from builderd.client.kept import JOB, STATE, KnownCode, Pending, State, fingerprint
from builderd.client.models import LogLine
from builderd.client.retries import NOT_SENT, ended_by_machine, new_key
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
        if pending is not None and pending.upload_url is not None and pending.upload_id is None:
            self._session.say("Resuming the upload that was interrupted.")
        elif pending is not None and pending.sent:
            self._session.say(f"Resuming the {what} whose answer did not arrive.")
        return pending

    def not_begun(self, pending: Pending) -> None:
        """Write down that the service has begun nothing: the same command resumes an upload at most."""
        pending.sent = False
        self._state.keep(pending)

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
        pending.sent = True
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
                    sending.not_begun(pending)
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
    (directory / FILE).unlink(missing_ok=True)
    project = Project(directory)
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


KINDS = [one.value for one in JobType]
#: Settings of an app that a job of the same folder does not have.
NOT_OF_JOBS = {"auto_stop_interval", "visibility", "release"}


@command("deploy")
@folder_argument
@click.option("--name", help="Name of the builder.  [default: of builder.toml, or the folder's]")
@click.option("--type", "job_type", type=click.Choice(KINDS), help="Its kind.  [default: what is found]")
@click.option("--start", "--entrypoint", "entrypoint", help="Command that starts the app.  [default: what is found]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port on which it must listen.  [default: what is found]")
@click.option("--env", "variables", multiple=True, metavar="KEY=VALUE", help="Set a variable, and keep the others.")
@click.option("--build", help="Command that builds it before its start; '' for none.  [default: what is found]")
@click.option("--env-file", metavar="PATH", help="File of the code with variables, such as .env; '' for none.")
@click.option("--root", metavar="FOLDER", help="Folder of the code in which it runs, such as apps/web of a monorepo.")
@click.option("--release", help="Command that runs once before it takes over; '' for none.  [default: the Procfile's]")
@click.option("--fresh", is_flag=True, help="Install the dependencies again.")
@click.option("--list", "only_list", is_flag=True, help="List what would be sent and what is left out; send nothing.")
@click.option("--yes", is_flag=True, help="Take what is found for the start without asking.")
@click.option("--replace", is_flag=True, help="Replace the app of the same name that another folder was deployed to.")
@click.option("--skip-review", is_flag=True, help="Leave the review out (needs the scope skip-gates).")
@click.option("--skip-qa", is_flag=True, help="Leave QA out (needs the scope skip-gates).")
def deploy(session: Session, directory: Path, name: str | None, **flags: Any) -> None:
    """Deploy a folder: create a builder, or a new version of the one there is. Prints its URL.

    Exits with 1 when the new version does not serve; the version before serves on. A job is awaited, and its log shown:
    1 when it fails. What the options choose is written into builder.toml after success, without the variables.

    Ctrl-C leaves the deployment going. The same command resumes it, also after a lost connection: it never makes a
    second builder.
    """
    project = Project.load(directory)
    given = {name: value for name, value in flags.items() if value not in (None, False, ())}
    chosen = {name: value for name, value in given.items() if name in NewBuilder.model_fields}
    options = project.options | chosen
    folder = _folder(project, options)
    if flags["only_list"]:
        sent = [{"path": file.path, "size": file.size} for file in folder.files]
        left_out = [{"path": one.path, "rule": one.rule} for one in folder.left_out]
        lines = [f"{size_text(file.size):>9}  {file.path}" for file in folder.files]
        lines += [f"{'left out':>9}  {one.path}  ({one.rule})" for one in folder.left_out]
        session.result({"files": sent, "left_out": left_out}, "\n".join(lines))
        return
    name = name or project.name or project.default_name()
    if not NAME.fullmatch(name):
        raise click.UsageError(f"{name!r} is no name: 1 to 63 lower-case letters, digits and hyphens, not at its ends")
    existing = _existing(session, name)
    _check_kind(project, existing, options.get("job_type"))
    # What starts the code is asked for once.
    is_known = flags["yes"] or existing is not None or any((project.root / one).exists() for one in (FILE, STATE))
    if start := _start(session, project, _below(folder, options.get("root")), options, is_known):
        options["entrypoint"] = start
    kind = existing.data.job_type if existing else options.get("job_type")
    if kind not in ("one_time", "sandbox") and not flags["skip_qa"]:
        options.setdefault("require_qa", True)
    deployment = _Deployment(session, folder, name, options, flags)
    pending = deployment.begin(existing, lambda found: _check_folder(session, project, found, flags))
    _print_sent(session, folder)
    builder = deployment.run(pending)
    if is_job := builder.data.job_type == "one_time":
        if existing is not None and builder.status not in ("creating", "running"):
            builder.start()  # a new version waits for it
        _follow(session, builder, (), shows=not session.as_json)
        if builder.exit_code != 0:
            session.say(f"Error: {name} ended: {builder.data.status_reason}\nNext: builderd logs {name}")
            raise SystemExit(Exit.FAILED)
    if project.name in (None, name):  # else the file is about another builder
        _write_chosen(
            session, project, {"name": name, **{key: chosen[of] for key, of in FIELDS.items() if of in chosen}}
        )
    if flags["variables"] and "env" in project.settings:
        session.say(f"The next deployment has the variables of [env] in {FILE} alone: --env is not written into it.")
    rate = f", {builder.data.cost.hourly_rate:.4f} {builder.data.cost.currency} an hour" if session.shows_money else ""
    does = "has run" if is_job else "serves" if served_at(builder) else "runs"
    session.say(f"{name} {does} version {builder.version}{rate}.")
    session.result(builder, served_at(builder) or builder.name)


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


def _existing(session: Session, name: str) -> Builder | None:
    try:
        return session.client.builders.get(name)
    except NotFound:
        return None


def _check_kind(project: Project, existing: Builder | None, wanted: str | None) -> None:
    """Raise ``ActionRequired`` for another kind than the builder has: it cannot change."""
    if existing is None or wanted in (None, existing.data.job_type):
        return
    again, name = f"builderd deploy {shlex.quote(str(project.root))} --type {wanted}", existing.name
    raise ActionRequired(
        f"{name} is of the kind {existing.data.job_type}, which cannot change to {wanted}: give another name, or "
        "delete it with its files first",
        f"{again} --name {name[:59]}-new",
        f"builderd delete {name} && {again}",
    )


def _check_folder(session: Session, project: Project, existing: Builder, flags: Mapping[str, Any]) -> None:
    """Ask before the app of another folder is replaced. Raises ``ActionRequired`` with ``--yes`` or no terminal."""
    name = existing.name
    folder = folder_of(session.service()[0], name)
    if flags["replace"] or folder == project.root.resolve() or (folder is None and project.name == name):
        return
    if all(one.status != "deployed" for one in existing.versions()):
        return  # it never was up
    again = f"builderd deploy {shlex.quote(str(project.root))}"
    following = f"{again} --replace", f"{again} --name {name[:59]}-new"
    whose = f"was deployed from {folder}" if folder else f"is there already, and no {FILE} here names it"
    if flags["yes"]:
        raise ActionRequired(f"{name} {whose}: --replace replaces it by this folder", *following)
    if not session.confirm(f"{name} {whose}. Replace it by this folder?", *following):
        raise click.UsageError("nothing was deployed: name another builder with --name")


def _write_chosen(session: Session, project: Project, chosen: Mapping[str, Any]) -> None:
    """Write what options chose into ``builder.toml``; what was only found is found anew the next time."""
    changed = {key: value for key, value in chosen.items() if project.settings.get(key) != value}
    if changed and project.write(changed):
        session.say(f"Wrote {', '.join(changed)} into {project.root / FILE}.")
    elif changed:
        session.say(f"{project.root / FILE} is left as it is. Set in it: {', '.join(changed)}.")


class _Deployment(Sending):
    """One deployment from a folder, with the key that is kept beside it."""

    def __init__(
        self, session: Session, folder: Folder, name: str, options: Mapping[str, Any], flags: Mapping[str, Any]
    ) -> None:
        super().__init__(session, folder, State(folder.root))
        self._name = name
        self._options = options
        self._variables, self._fresh = pairs(flags["variables"], "--env"), flags["fresh"]
        self._began = False
        self._stages = Progress(session)

    def begin(self, existing: Builder | None, check: Callable[[Builder], None]) -> Pending:
        """Return the call to send: the unanswered one of the same command, or a new one that ``check`` admits."""
        url, _, _ = self._session.service()
        mark = fingerprint(url, self._name, self._options, self._variables, self._fresh, self._folder.bundle)
        if (pending := self.resumed(mark, "deployment")) is not None:
            return pending
        if existing is not None:
            check(existing)
        keep_folder(url, self._name, self._folder.root)
        return Pending(new_key(), mark, existing.uuid if existing else None)

    def run(self, pending: Pending) -> Builder:
        """Send the call and return the builder, which serves. Raises the error of the stage that failed."""
        try:
            with self._stages:
                builder = self._send(pending)
                self.answered(pending)
                self.know(builder.uuid)
                for note in builder.check_version(strict=self._options.get("require_qa", True)):
                    self._session.say(f"Note: {printable(note)}")
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
            elif not self._began:
                self.not_begun(pending)
            if has_failed:
                self.know(pending.builder or error.builder)
                self._note_what_serves(error)
            raise
        except NoAnswer as error:
            if isinstance(error.__cause__, NOT_SENT) and not self._began:
                self.not_begun(pending)
            else:
                self._session.say("The answer was lost. Run the same command again: it resumes this deployment.")
            raise
        return builder

    def _note_what_serves(self, error: ApiError) -> None:
        """Add to a failure which version serves now; one that took over and failed after it is rolled back."""
        with suppress(BuilderdError):
            now, failed = self._session.client.builders.get(str(error.builder)), error.data.get("version")
            goes_on = f"Version {now.version} {'serves' if served_at(now) else 'runs'} on"
            if now.version == failed:
                before = [one.version for one in now.versions() if one.status == "deployed" and one.version != failed]
                if not before:
                    return
                goes_on = f"Bring the version before back: builderd rollback {now.name} {before[0]}"
                with suppress(BuilderdError):
                    now.rollback(before[0])
                    goes_on = f"Version {before[0]} is back, as version {now.version}"
            error.note = f"{goes_on}{f', at {served_at(now)}' if served_at(now) else ''}."

    def _send(self, pending: Pending) -> Builder:
        changes = self.changes(pending)
        if changes is not None:
            pending.sent = True
            self._state.keep(pending)
            # Refused: the version is gone, what was known of it is wrong, or the service is an older one. A mistake of
            # the settings is refused again.
            with suppress(ValidationFailed, TooLarge):
                return self._deploy(pending, changes)
            pending.key, pending.stored = new_key(), None
        self.send_code(pending)
        return self._deploy(pending, self.code(pending))

    def _deploy(self, pending: Pending, code: Mapping[str, Any]) -> Builder:
        builders, options = self._session.client.builders, {**self._options, "on_stage": self._stages.stage}
        common: dict[str, Any] = {"idempotency_key": pending.key, "on_begin": self._begin}
        builder = builders.get(pending.builder) if pending.builder else None
        if self._variables:
            kept = options.get("env", builder.data.env if builder else {})
            options["env"] = {**kept, **self._variables}
        if builder is None:
            return builders.create(self._name, **code, **common, **options)
        options.pop("job_type", None)
        return builder.deploy(**code, **common, fresh=self._fresh, **options)

    def _begin(self, path: str) -> None:
        self._began = True
        self._stages.begin(path.rpartition("/")[2])


def _start(session: Session, project: Project, folder: Folder, options: Mapping[str, Any], yes: bool) -> str:
    """Return the given command, or "" where the service starts what is found in the code, which is shown and confirmed.

    Raises ``ActionRequired`` where nothing starts it.
    """
    if given := options.get("entrypoint"):
        return str(given)
    found, where = detect(folder.project, options.get("job_type")), shlex.quote(str(project.root))
    if not isinstance(found, Detected):
        if options.get("job_type") in ("static", "sandbox"):
            return ""
        apps = [f"builderd deploy {where} --root {shlex.quote(root)}" for root in found.roots]
        raise ActionRequired(printable(found.reason), *apps, f"builderd deploy {where} --entrypoint 'COMMAND'")
    _print_found(session, found)
    if yes or found.framework == PROCFILE:
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
    options = {key: value for key, value in project.options.items() if key not in NOT_OF_JOBS}
    start = _start(session, project, below, {**options, **({"entrypoint": shlex.join(args)} if args else {})}, yes=True)
    if flags["with_stdin"]:
        options["stdin"] = sys.stdin.read()
    options |= {"job_type": "one_time", **({"entrypoint": start} if start else {})}
    _print_sent(session, folder)
    made_up = f"{(project.name or project.default_name())[:28].strip('-')}-{uuid.uuid4().hex[:8]}"
    with _job(session, folder, State(project.root, JOB), options, name, made_up) as builder:
        _follow(session, builder, flags["outputs"], shows=True)
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


def _follow(session: Session, builder: Builder, outputs: Sequence[str], *, shows: bool) -> None:
    """Show a job's log until its end, and fetch what it has made."""
    try:
        builder.wait(finished=True, on_line=partial(_print_line, session, builder) if shows else None, interval=0.5)
        for path in outputs:
            count = builder.files.download(path, Path(path).name)
            session.say(f"Fetched {path} ({count} file{'' if count == 1 else 's'}).")
    except KeyboardInterrupt:
        session.say(f"\nThe job goes on. Follow it: builderd logs -f {builder.name}")
        session.say("Run the same command again to wait for it.")
        raise


def _print_line(session: Session, builder: Builder, line: LogLine) -> None:
    if line.version != builder.version:
        return
    if session.as_json:
        session.row(line, "")
    elif line.stream not in ("build", "release"):
        is_error = line.stream == "stderr"
        click.echo(shown(line.text, sys.stderr if is_error else sys.stdout), err=is_error)
