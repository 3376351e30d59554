"""Kept results of builds: the answer to their removal."""

from __future__ import annotations

from builderd.schemas.v1.envelope import Success
from builderd.schemas.v1.shape import View


class RemovedBuilds(View):
    """Number of removed ``results``, and the ``bytes`` that they took."""

    results: int
    bytes: int


class RemovedBuildsAnswer(Success[RemovedBuilds]):
    """Answer with the removed results."""
