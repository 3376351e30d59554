"""Views of builders, read in one transaction with the outcome that their callers wait for."""

from __future__ import annotations

from functools import partial

from builderd.domain.builders import Builder
from builderd.domain.errors import NotFound
from builderd.services import builders, outcomes
from builderd.services.application import Application
from builderd.services.builders import BuilderView
from builderd.services.signals import outcome_of
from builderd.store import UnitOfWork


async def wait_for_view(application: Application, wanted: Builder, seen: int | None = None) -> BuilderView:
    """Wait until the present generation of a builder that was just changed has an outcome, as ``wait`` does.

    Return the view, read with the outcome. Raises what ``wait`` raises. ``seen``: the count of the builder's outcomes
    before its change was stored; with it, nothing is read before there is one.
    """
    view = await view_when_settled(application, wanted, seen)
    await outcomes.raise_failure(application, view.builder, wanted.generation)
    return view


async def view_when_settled(application: Application, wanted: Builder, seen: int | None = None) -> BuilderView:
    """Wait as ``wait_for_view`` does; return the view, also if the generation failed.

    Raises what ``outcomes.WaitLimit`` raises.
    """
    outcome, limit = outcome_of(wanted.id), outcomes.WaitLimit(application, wanted)
    if seen is not None and not outcomes.is_over(wanted, wanted.generation):
        await application.signals.wait(outcome, seen, outcomes.LOOK_INTERVAL)
    while not outcomes.is_over(wanted, wanted.generation):
        # Counted before the look: an outcome may have been recorded since ``wanted`` was stored.
        seen = application.signals.count(outcome)
        view = await application.store.read(partial(_view_of_outcome, application=application, wanted=wanted))
        if view is not None:
            return view
        limit.check()
        await application.signals.wait(outcome, seen, outcomes.LOOK_INTERVAL)
    return await application.store.read(partial(_view, application=application, wanted=wanted))


def _view_of_outcome(uow: UnitOfWork, application: Application, wanted: Builder) -> BuilderView | None:
    """Return the view once the generation is over, else None."""
    stored = _stored(uow, wanted)
    is_over = outcomes.is_over(stored, wanted.generation)
    return builders.view(uow, application, stored, application.clock.now()) if is_over else None


def _view(uow: UnitOfWork, application: Application, wanted: Builder) -> BuilderView:
    return builders.view(uow, application, _stored(uow, wanted), application.clock.now())


def _stored(uow: UnitOfWork, wanted: Builder) -> Builder:
    stored = uow.builders.get(wanted.id)
    if stored is None:
        raise NotFound("The builder is gone.")
    return stored
