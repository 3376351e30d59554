"""The moments in which one version makes way for another, and visitors wait."""

from __future__ import annotations

from builderd.domain.sandboxes import Sandbox
from builderd.ports.store import UnitOfWork
from builderd.reconciler.look import Subject
from builderd.services.application import Application

#: So long may requests that the old version works on take to finish, in seconds; then so long the old version itself.
DRAIN_TIMEOUT, GRACE = 10.0, 5.0
#: How often they are counted, in seconds.
DRAIN_INTERVAL = 0.005


async def drained(application: Application, host: str) -> None:
    """Wait until the app has answered what it was asked before new requests were held; not for ever."""
    clock = application.clock
    begun = clock.now()
    while await application.previews.open_requests(host):
        if (clock.now() - begun).total_seconds() >= DRAIN_TIMEOUT:
            return
        await clock.sleep(DRAIN_INTERVAL)


def last_trial(uow: UnitOfWork, subject: Subject) -> Sandbox | None:
    """The latest trial of the version in question."""
    number = subject.version.number
    trials = [one for one in uow.sandboxes.list(subject.builder.id) if one.trial and one.version == number]
    return trials[-1] if trials else None


def patience(trial: Sandbox | None, usual: float, longest: float) -> float:
    """How long a version that takes over may take to listen, in seconds.

    As long as visitors can wait for it; one that was slower than that on trial gets all the time that a start may
    take, and visitors read that it starts.
    """
    if trial is None or trial.listening_at is None or trial.started_at is None:
        return min(usual, longest)
    took = (trial.listening_at - trial.started_at).total_seconds()
    return longest if took > usual / 2 else min(usual, longest)
