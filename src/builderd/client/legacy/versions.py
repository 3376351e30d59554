"""Calls that change an existing builder: new code, settings, rollback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from builderd.client.legacy.pages import all_of
from builderd.schemas.v1.builders import Builder
from builderd.schemas.v1.versions import NewSettings, NewVersion, Version, VersionPage

V = TypeVar("V", bound=BaseModel)

API = "/api/v1/builders"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a deployment that has ended: ``review``, ``install``, ``start`` or ``qa``."""

    name: str
    seconds: float
    ok: bool


#: Called at the end of each stage.
OnStage = Callable[[Stage], None]


def no_stages(_: Stage) -> None:
    """Ignore the stages."""


class Caller(Protocol):
    """Calls of the client that this class uses. ``deploy`` follows the stages and returns the builder."""

    def call(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...
    def deploy(
        self, method: str, path: str, *, body: Any, query: Mapping[str, Any], key: str | None, on_stage: OnStage
    ) -> Builder: ...


class Versions:
    """Version calls (``Client.versions``). The old one serves until the new one is up.

    A failed version raises ``ApiError`` with the code of its stage, such as ``start_failed``.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list(self, uuid: str) -> list[Version]:
        """List the kept versions, newest first, failed ones with their reason."""
        return all_of(self._caller.call, VersionPage, f"{API}/{uuid}/versions")

    def deploy(
        self,
        uuid: str,
        new: NewVersion,
        *,
        fresh: bool = False,
        idempotency_key: str | None = None,
        on_stage: OnStage = no_stages,
    ) -> Builder:
        """Deploy new code and wait until it serves. Omitted fields keep their values; ``files`` replace all files.

        ``fresh``: install the dependencies again.
        """
        return self._caller.deploy(
            "PUT",
            f"{API}/{uuid}",
            body=_body(new),
            query={"fresh": "true"} if fresh else {},
            key=idempotency_key,
            on_stage=on_stage,
        )

    def change(
        self, uuid: str, settings: NewSettings, *, idempotency_key: str | None = None, on_stage: OnStage = no_stages
    ) -> Builder:
        """Change settings and wait until they apply: at once, or as a new version of the same code."""
        return self._caller.deploy(
            "PATCH", f"{API}/{uuid}", body=_body(settings), query={}, key=idempotency_key, on_stage=on_stage
        )

    def roll_back(
        self, uuid: str, version: int, *, idempotency_key: str | None = None, on_stage: OnStage = no_stages
    ) -> Builder:
        """Deploy the code and the settings of an old version as a new one. The app's data stays."""
        return self._caller.deploy(
            "POST",
            f"{API}/{uuid}/rollback",
            body={"version": version},
            query={},
            key=idempotency_key,
            on_stage=on_stage,
        )


def _body(shape: BaseModel) -> Any:
    return shape.model_dump(mode="json", exclude_unset=True)
