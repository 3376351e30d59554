"""Settings of a version between the JSON shapes and the domain, field by field of the same name.

A field of ``VersionSettings`` that a shape has too is copied by its name: a new one needs no line here, unless JSON
writes its value in another way.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from builderd.domain.versions import DERIVED_NAMES, SETTING_NAMES, Isolation, VersionSettings
from builderd.schemas.v1.builders import NewBuilder, ShownResources
from builderd.schemas.v1.shape import View
from builderd.schemas.v1.versions import NewSettings, NewVersion

#: Fields of the shapes that hold the code.
CODE = frozenset({"files", "source", "stored"})


def new_settings(new: NewBuilder, entrypoint: str, default_isolation: Isolation) -> VersionSettings:
    """Return the settings of a new builder, for which ``entrypoint`` was determined already."""
    copied = {name: getattr(new, name) for name in SETTING_NAMES if name not in DERIVED_NAMES}
    converted = {
        "entrypoint": entrypoint,
        "resources": new.resources.value,
        "isolation": new.isolation or default_isolation,
        "credentials": tuple(new.credentials),
        "build": new.build or "",
        "release": new.release or "",
    }
    return VersionSettings(**{**copied, **converted})


def given_fields(new: NewVersion | NewSettings, without: Collection[str] = CODE) -> dict[str, Any]:
    """Return the fields that a body gives, as ``deployments.Change.of`` takes them; of ``resources`` the given ones."""
    given = {name: getattr(new, name) for name in new.model_fields_set if name not in without}
    if "resources" in given:
        given["resources"] = {name: getattr(new.resources, name) for name in new.resources.model_fields_set}
    if "credentials" in given:
        given["credentials"] = tuple(new.credentials)
    return given


def shown_settings(settings: VersionSettings, shape: type[View]) -> dict[str, Any]:
    """Return the settings that the shape has, as its fields."""
    resources = settings.resources
    converted = {
        "env": dict(settings.env),
        "env_file_values": dict(settings.env_file_values),
        "resources": ShownResources(cpu=resources.cpu, memory=resources.memory, disk=resources.disk),
        "credentials": list(settings.credentials),
    }
    copied = {name: getattr(settings, name) for name in SETTING_NAMES if name in shape.model_fields}
    return {**copied, **converted}
