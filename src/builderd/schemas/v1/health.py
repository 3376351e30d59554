"""Health and readiness of the service."""

from __future__ import annotations

from builderd.schemas.v1.envelope import Success
from builderd.schemas.v1.shape import View


class Health(View):
    """Version of builderd that responds."""

    version: str


class Part(View):
    """Readiness of one part; ``message`` says what it waits for or what is wrong."""

    ready: bool
    message: str


class Readiness(View):
    """Readiness of every part that builders need."""

    database: Part
    engine: Part
    previews: Part


class HealthAnswer(Success[Health]):
    """Response of a live service."""


class ReadinessAnswer(Success[Readiness]):
    """Response of a ready service."""
