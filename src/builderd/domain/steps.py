"""Steps of the reconciler, each idempotent, and the observation that ``next_step`` chooses one from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from builderd.domain.builders import Status
from builderd.domain.previews import Route
from builderd.domain.sandboxes import Sandbox, SandboxReport


@dataclass(frozen=True, slots=True)
class VersionState:
    """Progress of one version towards its start. ``layer_ready`` is True also when it needs none."""

    number: int
    port: int
    bundle_hash: str
    layer_ready: bool
    #: The result of its build is there, or it has no build command.
    build_ready: bool = True
    #: Key of its build's result; empty without a build command.
    build_key: str = ""
    #: It speaks HTTP/2 without TLS on its port.
    h2c: bool = False
    #: Its release command has not succeeded yet.
    release_due: bool = False
    #: The QA gate has not run yet.
    qa_due: bool = False
    #: A version that fails the QA gate is stopped.
    qa_required: bool = False
    #: The review has not passed yet: nothing of it may run.
    review_due: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """Observed state of one builder.

    ``version`` is the one to run (``Builder.to_run``), ``candidate`` the one that is being prepared, if any, and
    ``trial`` the record of its trial that has not ended. ``disk_ready``: there is a disk of the version's
    size, and the ledger counts it. ``disk_bundle`` is the hash of the last bundle on it, None without a disk or
    before the first; ``disk_build`` is the key of the build's result on it, empty without one. ``lost``: the disk is
    missing and has a backup; ``recovering``: it is being restored; ``loss_due``: it was made, is missing, and nothing
    says so yet. ``sandbox`` is the builder's record that has not
    ended yet, ``report`` what the engine says of it. ``ends`` are the ended sandboxes of the present run, newest last.
    ``disk_leaving``: the member of the disk is to be emptied. ``paid_frozen``: the ledger counts it as frozen.
    Sandboxes of a release count as ``sandbox`` while they run, and are not among ``ends``.
    """

    now: datetime
    version: VersionState
    candidate: VersionState | None
    trial: Sandbox | None
    disk_ready: bool
    disk_bundle: str | None
    sandbox: Sandbox | None
    report: SandboxReport | None
    ends: tuple[Sandbox, ...]
    route: Route | None
    paid_frozen: bool = False
    lost: bool = False
    recovering: bool = False
    loss_due: bool = False
    disk_build: str = ""
    disk_leaving: bool = False


# The steps


@dataclass(frozen=True, slots=True)
class Review:
    """Review this version's code."""

    version: int


@dataclass(frozen=True, slots=True)
class Install:
    """Build the layer of this version, the current one or the candidate."""

    version: int


@dataclass(frozen=True, slots=True)
class BuildApp:
    """Run the build command of this version, the current one or the candidate."""

    version: int


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """Create the disk and bill it from now on; a candidate's disk is a copy of the builder's."""


@dataclass(frozen=True, slots=True)
class MoveDisk:
    """Move the disk from a member of the cluster that is to be emptied."""


@dataclass(frozen=True, slots=True)
class RecordLoss:
    """Record that the disk is gone for good, so that another one may be made."""


@dataclass(frozen=True, slots=True)
class RecoverDisk:
    """Restore the newest backup of a missing disk."""


@dataclass(frozen=True, slots=True)
class PutBundle:
    """Write the version's files, and what its build command made, into ``/app``."""


@dataclass(frozen=True, slots=True)
class PlanSandbox:
    """Record a new sandbox before the engine creates it. A ``release`` runs the release command, not the app."""

    attempt: int
    release: bool = False


@dataclass(frozen=True, slots=True)
class StartSandbox:
    """Start the recorded sandbox."""


@dataclass(frozen=True, slots=True)
class AwaitListening:
    """Wait until the app listens (a worker: has lived for a second), ends, or exceeds the start timeout."""


@dataclass(frozen=True, slots=True)
class AwaitRelease:
    """Wait until the release command ends; one that exceeds its time is stopped."""


@dataclass(frozen=True, slots=True)
class CheckApp:
    """Run the QA gate on the app."""


@dataclass(frozen=True, slots=True)
class StopSandbox:
    """Stop the sandbox and record how it ended."""

    #: Let requests in flight finish first.
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Freeze:
    """Freeze the sandbox, unless a request has arrived."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Thaw the sandbox; its route opens in the next step."""


@dataclass(frozen=True, slots=True)
class RecordEnd:
    """Record how the sandbox ended by itself, and remove its remains."""


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Set the preview's route."""

    route: Route


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove the preview's route."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the disk and the logs, and mark the builder deleted."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Record the outcome of the desired state."""

    status: Status


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Give up an app that exited before it ever listened in this run, or too often: its status is ``failed``."""

    too_often: bool


@dataclass(frozen=True, slots=True)
class PlanTrial:
    """Record a trial of the candidate before the engine creates it."""


@dataclass(frozen=True, slots=True)
class TryCandidate:
    """Start the candidate on a copy of the disk, without egress; one that exits early is rejected."""


@dataclass(frozen=True, slots=True)
class EndTrial:
    """Remove a trial that is no longer needed."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Hand over to the candidate: it is the version to run from now on."""


@dataclass(frozen=True, slots=True)
class DropDisks:
    """Remove unused disks."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until this time (None: until something changes)."""

    until: datetime | None = None


Step = (
    Review
    | Install
    | BuildApp
    | CreateDisk
    | MoveDisk
    | RecordLoss
    | RecoverDisk
    | PutBundle
    | PlanSandbox
    | StartSandbox
    | AwaitListening
    | AwaitRelease
    | CheckApp
    | StopSandbox
    | Freeze
    | Thaw
    | RecordEnd
    | SetRoute
    | RemoveRoute
    | Forget
    | Settle
    | GiveUp
    | PlanTrial
    | TryCandidate
    | EndTrial
    | HandOver
    | DropDisks
    | Wait
)
