"""Base of the models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Base of all results. Validation is built when a class is first used, not when this module is imported."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True, serialize_by_alias=True)
