"""Routes of a builder's preview: where its host name leads in each state."""

from __future__ import annotations

from typing import Protocol

from builderd.domain.builders import Desired, Handover, JobType, Status, StopKind, Visibility
from builderd.domain.ids import BuilderId, TenantId, secret_hash
from builderd.domain.previews import Address, Route, RouteState

#: States of the route of a builder that is stopped or has ended: a route in another one is opened or closed soon.
RESTING_STATES = frozenset(
    (
        RouteState.STOPPED,
        RouteState.FAILED,
        RouteState.ASLEEP,
        RouteState.CAPPED,
        RouteState.JOB,
        RouteState.WORKER,
    )
)


class Routed(Protocol):
    """Fields of a builder that its route follows from."""

    @property
    def id(self) -> BuilderId: ...
    @property
    def tenant_id(self) -> TenantId: ...
    @property
    def host(self) -> str: ...
    @property
    def service_token(self) -> str: ...
    @property
    def job_type(self) -> JobType: ...
    @property
    def visibility(self) -> Visibility: ...
    @property
    def desired(self) -> Desired: ...
    @property
    def status(self) -> Status: ...
    @property
    def stop_kind(self) -> StopKind | None: ...
    @property
    def handover(self) -> Handover | None: ...


def closed_route(builder: Routed) -> Route:
    """Return the route of a builder without a reachable app."""
    return make_route(builder, _closed_state(builder))


def _closed_state(builder: Routed) -> RouteState:
    if builder.job_type is JobType.ONE_TIME:
        return RouteState.JOB
    if builder.job_type is JobType.WORKER:
        return RouteState.WORKER
    if builder.desired is Desired.RUNNING:
        waits = builder.stop_kind is StopKind.IDLE or _is_handing_over(builder)
        return RouteState.PAUSED if waits else RouteState.STARTING
    if builder.status is Status.FAILED:
        return RouteState.FAILED
    match builder.stop_kind:
        case StopKind.IDLE:
            return RouteState.ASLEEP
        case StopKind.CAP:
            return RouteState.CAPPED
    return RouteState.STOPPED


def _is_handing_over(builder: Routed) -> bool:
    """Return True while a version that serves is being replaced."""
    return builder.handover is not None and builder.status is Status.RUNNING


def make_route(builder: Routed, state: RouteState, destination: Address | None = None, *, h2c: bool = False) -> Route:
    token = secret_hash(builder.service_token)
    private = builder.visibility is Visibility.PRIVATE
    return Route(
        host=builder.host,
        state=state,
        destination=destination,
        h2c=h2c,
        token_hash=token if private else None,
        builder_id=builder.id,
        owner_hash=None if private else token,
        tenant_id=builder.tenant_id,
    )
