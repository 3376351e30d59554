"""Claims on builders: compare-and-set on a lease, and the time at which a builder is due.

While a lease is held, ``due_at`` collects only what made the builder due since it was taken, and a release keeps the
earlier of that and the time it asks for itself: no change during the work is missed. A lease that expires without a
release makes its builder due, so another control plane takes over the work of one that died.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import BindParameter, Case, and_, bindparam, case, or_, select, update

from builderd.builders.table import builders, due_since
from builderd.core.ids import BuilderId
from builderd.database.repository import Queries, batches

_row = builders.c
_owner: BindParameter[str] = bindparam("owner", type_=_row.claimed_by.type)
_now: BindParameter[datetime] = bindparam("now", type_=_row.due_at.type)
_until: BindParameter[datetime] = bindparam("until", type_=_row.claimed_until.type)
_at: BindParameter[datetime] = bindparam("at", type_=_row.due_at.type)
_earlier: Case[datetime] = case((_row.due_at < _at, _row.due_at), else_=_at)

_UPDATE = update(builders).where(_row.id == bindparam("builder"))
_OWNED = _UPDATE.where(_row.claimed_by == _owner)
_NOT_ANOTHERS = _UPDATE.where(or_(_row.claimed_by.is_(None), _row.claimed_by == _owner, _row.claimed_until <= _now))
_CLAIM = _NOT_ANOTHERS.values(
    claimed_by=_owner,
    claimed_until=_until,
    # A new claim clears due_at, since its owner observes the builder next; one that it has keeps what came in since.
    due_at=case((_row.claimed_by == _owner, _row.due_at)),
)
# Changes nothing of one that was released: who takes it next reads the builder, which a renewal does not.
_RENEW = _NOT_ANOTHERS.values(claimed_until=case((_row.claimed_by == _owner, _until), else_=_row.claimed_until))
#: Condition for a row whose claim is the owner's and has not expired.
is_held = and_(_row.claimed_by == _owner, _row.claimed_until > _now)
_RELEASE = _OWNED.values(claimed_by=None, claimed_until=None)
_RELEASE_UNTIL = _RELEASE.values(due_at=_earlier)
# Many rows in one statement are locked in any order: a row that another transaction has is left to the caller, since
# to wait for it with others locked may be a deadlock.
_FREE = select(_row.id).with_for_update(skip_locked=True, key_share=True)
_OF_OWNER = select(_row.id).where(_row.claimed_by == _owner)
_RELEASE_ALL = (
    update(builders)
    .where(_row.id.in_(_FREE.where(_row.claimed_by == _owner)))
    .values(claimed_by=None, claimed_until=None, due_at=_earlier)
)
_MAKE_DUE = _UPDATE.values(due_at=_earlier)
_MAKE_ALL_DUE = (
    update(builders)
    .where(_row.id.in_(_FREE.where(_row.id.in_(bindparam("builders", expanding=True)))))
    .values(due_at=_earlier)
    .returning(_row.id)
)
_DUE = select(_row.id).where(due_since <= _now).order_by(due_since, _row.id).limit(bindparam("limit"))


class Claims(Queries):
    """Leases on builders, a part of ``Builders``."""

    def claim(self, builder: BuilderId, owner: str, now: datetime, until: datetime) -> bool:
        """Take the claim, or keep it; return False while another owner's has not expired."""
        return self._change(_CLAIM, builder=builder, owner=owner, now=now, until=until) == 1

    def renew(self, builder: BuilderId, owner: str, now: datetime, until: datetime) -> bool:
        """Let this owner's claim hold until then; one that was released stays so.

        Return False while another owner's has not expired.
        """
        return self._change(_RENEW, builder=builder, owner=owner, now=now, until=until) == 1

    def release(self, builder: BuilderId, owner: str, due_at: datetime | None) -> None:
        """Release the claim; the builder is due at ``due_at``, or (None) after a change."""
        values = {"builder": builder, "owner": owner}
        if due_at is None:
            self._connection.execute(_RELEASE, values)
        else:
            self._connection.execute(_RELEASE_UNTIL, {**values, "at": due_at})

    def release_all(self, owner: str, due_at: datetime) -> Sequence[BuilderId]:
        """Release all claims of this owner; their builders are due at ``due_at`` or earlier.

        Return the claims that are left, of builders that other transactions work on: each needs one of its own.
        """
        self._change(_RELEASE_ALL, owner=owner, at=due_at)
        return self._connection.scalars(_OF_OWNER, {"owner": owner}).all()

    def make_due(self, builder: BuilderId, at: datetime) -> None:
        """Make the builder due at this time or earlier."""
        self._change(_MAKE_DUE, builder=builder, at=at)

    def make_all_due(self, builders: Sequence[BuilderId], at: datetime) -> Sequence[BuilderId]:
        """Make these builders due at this time or earlier.

        Return those that other transactions work on, and that are gone: each of these needs a transaction of its own.
        """
        made: set[BuilderId] = set()
        for some in batches(builders):
            made.update(self._connection.scalars(_MAKE_ALL_DUE, {"builders": some, "at": at}).all())
        return [one for one in builders if one not in made]

    def due(self, now: datetime, limit: int) -> Sequence[BuilderId]:
        """Return builders that are due and unclaimed, the longest due first."""
        return self._connection.scalars(_DUE, {"now": now, "limit": limit}).all()
