"""Versions in SQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, bindparam, exists, insert, select, union, update

from builderd.adapters.stores.sql.rows import omit, row_of
from builderd.adapters.stores.sql.tables import backups, builders, versions
from builderd.domain.backups import BackupStatus
from builderd.domain.builders import Status
from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.resources import Resources
from builderd.domain.versions import NO_LAYER, SETTING_NAMES, Version, VersionSettings, VersionStatus

_RESOURCES = tuple(field.name for field in fields(Resources))
_SETTINGS = tuple(name for name in SETTING_NAMES if name != "resources")

_INSERT = insert(versions)
_OF_BUILDER = select(versions).where(versions.c.builder_id == bindparam("builder"))
_ONE = _OF_BUILDER.where(versions.c.number == bindparam("number"))
_NEWEST_FIRST = _OF_BUILDER.order_by(versions.c.number.desc())
_CURRENT = select(versions).where(
    builders.c.tenant_id == bindparam("tenant"),
    builders.c.id == versions.c.builder_id,
    builders.c.version == versions.c.number,
)
_UPDATE = update(versions).where(versions.c.builder_id == bindparam("builder"), versions.c.number == bindparam("which"))
_has_bundle = versions.c.bundle_hash == bindparam("bundle")
_USES_BUNDLE = select(
    exists()
    .where(_has_bundle, versions.c.status != VersionStatus.DROPPED)
    .where(builders.c.id == versions.c.builder_id, builders.c.status != Status.DELETED)
    | exists()
    .where(_has_bundle)
    .where(backups.c.builder_id == versions.c.builder_id, backups.c.version == versions.c.number)
    .where(backups.c.status != BackupStatus.FAILED)
)


def _layers(column: ColumnElement[str]) -> Select[str]:
    return (
        select(column)
        .where(column.is_not(None), column != NO_LAYER)
        .where(versions.c.status != VersionStatus.DROPPED)
        .where(builders.c.id == versions.c.builder_id, builders.c.status != Status.DELETED)
    )


_COLUMNS = (versions.c.layer_key, versions.c.build_key)
_LAYERS = union(*(_layers(column) for column in _COLUMNS))
_LAYERS_OF_TENANT = union(*(_layers(column).where(builders.c.tenant_id == bindparam("tenant")) for column in _COLUMNS))


class Versions:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, version: Version) -> None:
        self._connection.execute(_INSERT, _row(version))

    def get(self, builder: BuilderId, number: int) -> Version | None:
        row = self._connection.execute(_ONE, {"builder": builder, "number": number}).mappings().first()
        return _version(row) if row else None

    def list(self, builder: BuilderId) -> Sequence[Version]:
        return [_version(row) for row in self._connection.execute(_NEWEST_FIRST, {"builder": builder}).mappings()]

    def current(self, tenant: TenantId) -> Mapping[BuilderId, Version]:
        rows = self._connection.execute(_CURRENT, {"tenant": tenant}).mappings()
        return {version.builder_id: version for version in map(_version, rows)}

    def save(self, version: Version) -> None:
        """Update the row of this value. Raises ``LookupError`` when there is none."""
        key = {"builder": version.builder_id, "which": version.number}
        if self._connection.execute(_UPDATE, {**key, **omit(_row(version), "builder_id", "number")}).rowcount != 1:
            raise LookupError(f"no version {version.number} of builder {version.builder_id} to save")

    def uses_bundle(self, bundle_hash: str) -> bool:
        return bool(self._connection.execute(_USES_BUNDLE, {"bundle": bundle_hash}).scalar_one())

    def layers(self, tenant: TenantId | None = None) -> Collection[str]:
        if tenant is None:
            return frozenset(self._connection.execute(_LAYERS).scalars())
        return frozenset(self._connection.execute(_LAYERS_OF_TENANT, {"tenant": tenant}).scalars())


def _row(version: Version) -> dict[str, Any]:
    row = row_of(version)
    settings = row_of(row.pop("settings"))
    resources = row_of(settings.pop("resources"))
    env, credentials = dict(settings.pop("env")), list(settings.pop("credentials"))
    return {**row, **settings, **resources, "env": env, "credentials": credentials}


def _version(row: RowMapping) -> Version:
    values = dict(row)
    resources = Resources(**{name: values.pop(name) for name in _RESOURCES})
    settings = {name: values.pop(name) for name in _SETTINGS}
    settings["credentials"] = tuple(settings["credentials"])
    return Version(**values, settings=VersionSettings(**settings, resources=resources))
