"""Steps of the reconciler, each idempotent, and the observation that ``next_step`` chooses one from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from builderd.domain.builders import Status
from builderd.domain.previews import Route
from builderd.domain.sandboxes import Sandbox, SandboxReport


@dataclass(frozen=True, slots=True)
class VersionState:
    """How far one version is on the way to being started. ``layer_ready`` is True also when it needs none."""

    number: int
    port: int
    bundle_hash: str
    layer_ready: bool
    #: The QA gate is to judge it still.
    qa_due: bool = False
    #: What fails the QA gate does not stay up.
    qa_required: bool = False
    #: The review is to let it pass still: nothing of it runs before that.
    review_due: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """What the reconciler saw in one look.

    ``version`` is the one that is to run (``Builder.to_run``), ``candidate`` the one that is prepared beside it,
    if any, and ``trial`` the record of its trial that has not ended. ``disk_ready``: there is a disk of the version's
    size, and the ledger counts it. ``disk_bundle`` is the hash of what was last put on it, None without a disk or
    before the first. ``lost``: there is no disk, but a backup of it; ``recovering``: that is being brought back.
    ``sandbox`` is the builder's record that has not ended yet, ``report`` what the engine says of
    it. ``ends`` are the ended sandboxes of the present run, newest last. ``paid_frozen``: the ledger counts it as
    frozen.
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


# The steps


@dataclass(frozen=True, slots=True)
class Review:
    """Have this version's code reviewed, and beside that what it needs installed as far as that runs no code of it."""

    version: int


@dataclass(frozen=True, slots=True)
class Install:
    """Make the layer of this version, the one that is to run or the candidate."""

    version: int


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """Make the disk, and count it from now on: a candidate's is a copy of the builder's."""


@dataclass(frozen=True, slots=True)
class RecoverDisk:
    """The disk is gone: have its newest backup brought back, rather than begin anew with an empty one."""


@dataclass(frozen=True, slots=True)
class PutBundle:
    """Write the version's files into ``/app``."""


@dataclass(frozen=True, slots=True)
class PlanSandbox:
    """Record a new sandbox, before anything of it exists in the world."""

    attempt: int


@dataclass(frozen=True, slots=True)
class StartSandbox:
    """Have the engine start the recorded sandbox."""


@dataclass(frozen=True, slots=True)
class AwaitListening:
    """Wait until the app can be reached, ends, or runs out of time."""


@dataclass(frozen=True, slots=True)
class CheckApp:
    """Let the QA gate judge the app that listens."""


@dataclass(frozen=True, slots=True)
class StopSandbox:
    """Stop the sandbox and record how it ended."""

    #: The requests that it works on may finish first.
    drain: bool = False


@dataclass(frozen=True, slots=True)
class Freeze:
    """Have the sandbox stand still, unless a visitor is there."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Have the sandbox go on, and let those in who wait for it: as one step, since they do wait."""

    route: Route


@dataclass(frozen=True, slots=True)
class RecordEnd:
    """The sandbox has ended by itself: record how, and remove what is left of it."""


@dataclass(frozen=True, slots=True)
class SetRoute:
    """Let the preview show this."""

    route: Route


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """The preview forgets the host."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the disk and the logs: the builder is then deleted."""


@dataclass(frozen=True, slots=True)
class Settle:
    """What was wanted has come to this outcome."""

    status: Status


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The app exited before it ever listened in this run, or too often: the outcome is ``failed``."""

    too_often: bool


@dataclass(frozen=True, slots=True)
class PlanTrial:
    """Record a trial of the candidate, before anything of it exists in the world."""


@dataclass(frozen=True, slots=True)
class TryCandidate:
    """Start the candidate on a copy of the disk, without egress: one that exits early does not take over."""


@dataclass(frozen=True, slots=True)
class EndTrial:
    """Take away a trial that nobody waits for any more."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """From now on the candidate is what runs."""


@dataclass(frozen=True, slots=True)
class DropDisks:
    """Remove the disks that are used no more."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before this time (None: until something changes)."""

    until: datetime | None = None


Step = (
    Review
    | Install
    | CreateDisk
    | RecoverDisk
    | PutBundle
    | PlanSandbox
    | StartSandbox
    | AwaitListening
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
