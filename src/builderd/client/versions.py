"""What changes a builder that is there: new code, other settings, older versions again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from builderd.client.pages import all_of
from builderd.wire.v1.builders import Builder
from builderd.wire.v1.versions import NewSettings, NewVersion, Version, VersionPage

V = TypeVar("V", bound=BaseModel)

API = "/api/v1/builders"


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a deployment that has ended: ``review``, ``install``, ``start`` or ``qa``."""

    name: str
    seconds: float
    ok: bool


#: Told of each stage as it ends.
OnStage = Callable[[Stage], None]


def no_stages(_: Stage) -> None:
    """For who does not want to know."""


class Caller(Protocol):
    """How the client calls. ``deploy`` follows the stages to the builder that came of them."""

    def call(self, answer: type[V], method: str, path: str, **options: Any) -> V: ...
    def deploy(
        self, method: str, path: str, *, body: Any, query: Mapping[str, Any], key: str | None, on_stage: OnStage
    ) -> Builder: ...


class Versions:
    """``Client.versions``. What was there before serves until the new version does, and goes on when that fails.

    A failed version is an ``ApiError`` with the code of its stage, such as ``start_failed``.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def list(self, uuid: str) -> list[Version]:
        """Those that are kept, the newest first, failed ones with their reason."""
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
        """Deploy new code, and wait until it serves. What is left out stays; ``files`` are replaced as a whole.

        ``fresh``: the dependencies are installed anew.
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
        """Change settings, and wait until they are in force: at once, or as a new version of the same code."""
        return self._caller.deploy(
            "PATCH", f"{API}/{uuid}", body=_body(settings), query={}, key=idempotency_key, on_stage=on_stage
        )

    def roll_back(
        self, uuid: str, version: int, *, idempotency_key: str | None = None, on_stage: OnStage = no_stages
    ) -> Builder:
        """Deploy the code and the settings of an old version as a new one. What the app wrote stays."""
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
