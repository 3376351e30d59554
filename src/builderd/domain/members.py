"""Members of a cluster that an engine works on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from builderd.domain.errors import EngineUnavailable
from builderd.domain.resources import Capacity


class MemberAway(EngineUnavailable):
    """The only member that has it does not answer. What is to be ended there can be noted, and is ended later."""


@dataclass(frozen=True, slots=True)
class MemberReport:
    """A member as last seen. ``away_since`` is when it was first seen away, None while it answers.

    ``given_up``: it is away for so long that builders there get a backup elsewhere, as the operator has chosen.
    ``evacuating``: its builders are to be moved to others. ``capacity`` is what it has, None while it is not known.
    """

    name: str
    address: str
    away_since: datetime | None = None
    given_up: bool = False
    evacuating: bool = False
    capacity: Capacity | None = None
