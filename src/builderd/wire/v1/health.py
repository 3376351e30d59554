"""Whether the service is alive, and whether it can take work."""

from __future__ import annotations

from builderd.wire.v1.envelope import Success
from builderd.wire.v1.shape import View


class Health(View):
    """The version of builderd that answers."""

    version: str


class Part(View):
    """``message`` says what is still being made, or what is wrong."""

    ready: bool
    message: str


class Readiness(View):
    """What must be ready before builders can be created."""

    database: Part
    engine: Part
    previews: Part


class HealthAnswer(Success[Health]):
    """It is alive."""


class ReadinessAnswer(Success[Readiness]):
    """It can take work."""
