"""Health and readiness of the service."""

from __future__ import annotations

from typing import Literal

from builderd.schemas.v1.shape import Success, View

#: Of a service in its cluster: one works, the others stand by.
Role = Literal["working", "standby"]


class Part(View):
    """Readiness of one part; ``message`` says what it waits for or what is wrong."""

    ready: bool
    message: str


class Health(View):
    """Version of builderd that responds, and its role in its cluster.

    ``worker`` is the host of the service that works, as a standby knows it.
    """

    version: str
    role: Role = "working"
    worker: str | None = None


class Readiness(View):
    """Readiness of every part that builders need, and of the certificate of ``public_url``.

    That of a standby has no part that is ready; ``worker`` is the service that works.
    """

    database: Part
    engine: Part
    previews: Part
    vault: Part = Part(ready=True, message="an earlier service does not say")
    #: The certificate of ``public_url`` that the service gets by itself. It holds up nothing: the API answers on
    #: ``host`` and ``port`` meanwhile.
    public_url: Part = Part(ready=True, message="an earlier service does not say")
    #: The machine's clock was set while the service ran, or rows may lie in the future. It holds up nothing.
    clock: Part = Part(ready=True, message="an earlier service does not say")
    role: Role = "working"
    worker: str | None = None


class HealthAnswer(Success[Health]):
    """Response of a live service."""


class ReadinessAnswer(Success[Readiness]):
    """Response of a ready service."""
