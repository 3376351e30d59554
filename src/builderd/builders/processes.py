"""Further processes of an app: what a Procfile names beside its own command, and how each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from builderd.builders.model import Builder, Desired, JobType, Status, is_crash, is_given_up
from builderd.code.detection.project import PROCFILE, project_of
from builderd.code.model import Bundle
from builderd.core.errors import NotFound, ValidationFailed
from builderd.database.unit_of_work import UnitOfWork
from builderd.sandboxes.model import Sandbox
from builderd.versions.model import RESERVED_PROCESSES, Version, process_errors

#: Kinds that have further processes: those that are kept running.
WITH_PROCESSES = frozenset({JobType.ALWAYS_ON, JobType.WORKER})
#: Lines of a Procfile that one error names.
MAX_NAMED = 10


def main_process(job_type: JobType) -> str:
    """Return the name of the process that the app's own command is."""
    return "worker" if job_type is JobType.WORKER else "web"


def read_procfile(bundle: Bundle, job_type: JobType, entrypoint: str) -> dict[str, str]:
    """Return the further processes of the bundle's ``Procfile``: all but ``web``, ``release`` and the app's own.

    The app's own is that of its kind, or else the one whose command is the ``entrypoint``.

    Raises ``ValidationFailed`` with the number of each line that is wrong.
    """
    if job_type not in WITH_PROCESSES:
        return {}
    found, wrong = project_of(bundle).procfile
    main = main_process(job_type)
    if main not in found:
        main = next((name for name, command in found.items() if command == entrypoint), main)
    further = {name: one for name, one in found.items() if name not in {*RESERVED_PROCESSES, main}}
    errors = [*wrong, *(f"{name[:40]}: {why}" if name else why for name, why in process_errors(further))]
    if errors:
        raise ValidationFailed({PROCFILE: errors[:MAX_NAMED]})
    return further


class ProcessView(NamedTuple):
    """A process with the number of its sandboxes: wanted (``scale``) and running. ``restarts`` after crashes.

    ``state``: ``running``, ``starting``, ``restarting``, ``failed`` (given up) or ``stopped``.
    """

    name: str
    command: str
    scale: int
    running: int
    state: str
    restarts: int


def views(builder: Builder, version: Version, sandboxes: Sequence[Sandbox]) -> tuple[ProcessView, ...]:
    """Return the app's own process and its further ones; nothing for an app that has no further ones.

    ``sandboxes`` are those of the builder's present run, oldest first.
    """
    if not version.settings.processes:
        return ()
    sandboxes = [
        one for one in sandboxes if not (one.trial or one.release or one.replaced) or (one.replaced and one.end is None)
    ]
    main = main_process(builder.job_type)
    commands = {main: version.settings.entrypoint, **version.settings.processes}
    return tuple(
        _view(builder, name, command, [one for one in sandboxes if one.process == ("" if name == main else name)])
        for name, command in commands.items()
    )


def _view(builder: Builder, name: str, command: str, own: Sequence[Sandbox]) -> ProcessView:
    scale = builder.scale.get(name, 1)
    running = sum(one.started_at is not None and one.end is None for one in own)
    ends = {number: [one for one in own if one.number == number and one.end] for number in range(1, scale + 1)}
    crashes = sum(is_crash(one) for some in ends.values() for one in some)
    if builder.desired is not Desired.RUNNING or not scale:
        state = "failed" if builder.status is Status.FAILED and scale else "stopped"
    elif any(is_given_up(some) for some in ends.values()):
        state = "failed"
    elif running == scale:
        state = "running"
    else:
        state = "restarting" if crashes else "starting"
    return ProcessView(name, command, scale, running, state, crashes)


def stored_name(uow: UnitOfWork, builder: Builder, name: str) -> str:
    """Return the name under which sandboxes of a process are stored: "" for the app's own.

    ``name`` may be that of one sandbox, ``worker.2``. Raises ``NotFound`` for a process that the app does not have.
    """
    main = main_process(builder.job_type)
    processes: Mapping[str, str] = uow.versions.require(builder.id, builder.version).settings.processes
    if name.partition(".")[0] in processes:
        return name
    if name in (main, f"{main}.1"):
        return ""
    known = ", ".join((main, *processes))
    raise NotFound(f"{builder.name} has no process {name[:40]!r}: it has {known}.")
