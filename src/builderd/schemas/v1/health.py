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
    """Readiness of every part that builders need, and of the certificate of ``public_url``."""

    database: Part
    engine: Part
    previews: Part
    #: The certificate of ``public_url`` that the service gets by itself. It holds up nothing: the API answers on
    #: ``host`` and ``port`` meanwhile.
    public_url: Part = Part(ready=True, message="an earlier service does not say")


class HealthAnswer(Success[Health]):
    """Response of a live service."""


class ReadinessAnswer(Success[Readiness]):
    """Response of a ready service."""
