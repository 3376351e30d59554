"""Versions in SQL."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from enum import StrEnum
from typing import Any, get_type_hints

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    Integer,
    Row,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    exists,
    false,
    literal,
    select,
    text,
    tuple_,
    union,
    update,
)

from builderd.backups.model import BackupStatus
from builderd.backups.store import backups
from builderd.builders.model import Status
from builderd.builders.table import LIVE, builders
from builderd.core.ids import BuilderId, TenantId
from builderd.core.resources import Resources
from builderd.database.columns import document, metadata
from builderd.database.repository import Repository, batches, damage_named, read_each
from builderd.database.types import ForeignText, UtcDateTime, enum_column, row_of
from builderd.versions.model import NO_LAYER, SETTING_NAMES, Isolation, Version, VersionSettings, VersionStatus


def setting_columns(*others: str) -> Iterator[Column[Any]]:
    """Yield a column for each setting of a version whose type is plain, but for ``others``, which have no default."""
    types: dict[type, Any] = {bool: Boolean, int: Integer, str: Text}
    hints = get_type_hints(VersionSettings)
    for one in fields(VersionSettings):
        hint = hints[one.name]
        if one.name in others or not isinstance(hint, type):
            continue
        if issubclass(hint, StrEnum) or hint in types:
            default = false() if hint is bool else text(f"{one.default}" if hint is int else f"'{one.default}'")
            kind = enum_column(hint) if issubclass(hint, StrEnum) else types[hint]
            yield Column(one.name, kind, nullable=False, server_default=default)


versions = Table(
    "versions",
    metadata,
    Column("builder_id", Text, ForeignKey("builders.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("bundle_hash", Text, nullable=False, index=True),
    Column("entrypoint", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("env", document(), nullable=False),
    Column("cpu", Double, nullable=False),
    Column("memory", Double, nullable=False),
    Column("disk", Double, nullable=False),
    Column("isolation", enum_column(Isolation), nullable=False),
    Column("credentials", document(), nullable=False),
    Column("skip_review", Boolean, nullable=False),
    Column("skip_qa", Boolean, nullable=False),
    Column("require_qa", Boolean, nullable=False),
    Column("created_by", ForeignText, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("status", enum_column(VersionStatus), nullable=False),
    Column("status_reason", ForeignText, nullable=False),
    Column("layer_key", Text, index=True),
    Column("review_passed", Boolean),
    Column("qa_passed", Boolean),
    Column("failure_code", Text),
    Column("rolled_back_to", Integer),
    Column("fresh_since", Integer),
    Column("review_key", Text, index=True),
    Column("review_until", UtcDateTime),
    Column("build_key", Text, index=True),
    Column("env_file_values", document()),
    Column("released", Boolean, nullable=False, server_default=false()),
    *setting_columns("entrypoint", "port", "isolation", "skip_review", "skip_qa", "require_qa"),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    CheckConstraint("cpu > 0 AND memory > 0 AND disk > 0", name="resources"),
)


_OF_BUILDER = select(versions).where(versions.c.builder_id == bindparam("builder"))
_ONE = _OF_BUILDER.where(versions.c.number == bindparam("number"))
_NEWEST_FIRST = _OF_BUILDER.order_by(versions.c.number.desc())
#: The input of a job may have a megabyte, and no view shows it.
_SHOWN: Select[Any] = select(
    *(column for column in versions.c if column.name != "stdin"), literal("").label("stdin")
).where(tuple_(versions.c.builder_id, versions.c.number).in_(bindparam("keys", expanding=True)))
_CURRENT_WITH_CREDENTIAL = select(versions).where(
    builders.c.tenant_id == bindparam("tenant"),
    text(LIVE),
    builders.c.id == versions.c.builder_id,
    builders.c.version == versions.c.number,
)
# JSON of names; a name has no character that JSON escapes.
_credentials = cast(versions.c.credentials, Text)
_RESERVE_DISK = (
    update(builders)
    .where(builders.c.id == bindparam("builder"), builders.c.version == bindparam("which"))
    .where(builders.c.disk_released_at.is_(None))
    .values(reserved_disk=bindparam("size"))
)


def _uses_bundle(is_it: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(is_it, versions.c.status != VersionStatus.DROPPED).where(
        builders.c.id == versions.c.builder_id, builders.c.status != Status.DELETED
    ) | exists().where(is_it).where(
        backups.c.builder_id == versions.c.builder_id, backups.c.version == versions.c.number
    ).where(backups.c.status != BackupStatus.FAILED)


_USES_BUNDLE = select(_uses_bundle(versions.c.bundle_hash == bindparam("bundle")))
_named = (
    select(versions.c.bundle_hash).where(versions.c.bundle_hash.in_(bindparam("bundles", expanding=True))).distinct()
).cte("named")
_USED_BUNDLES = select(_named.c.bundle_hash).where(_uses_bundle(versions.c.bundle_hash == _named.c.bundle_hash))
_LEFT_OUT = (versions.c.builder_id == bindparam("builder")) & versions.c.number.in_(
    bindparam("without", expanding=True)
)
_BUNDLES_OF_TENANT = union(
    select(versions.c.bundle_hash)
    .join(builders, builders.c.id == versions.c.builder_id)
    .where(builders.c.tenant_id == bindparam("tenant"), builders.c.status != Status.DELETED)
    .where(versions.c.status != VersionStatus.DROPPED, ~_LEFT_OUT),
    select(versions.c.bundle_hash)
    .join(backups, (backups.c.builder_id == versions.c.builder_id) & (backups.c.version == versions.c.number))
    .where(backups.c.tenant_id == bindparam("tenant"), backups.c.status != BackupStatus.FAILED),
)


def _layers(column: ColumnElement[str]) -> Select[str]:
    return (
        select(column)
        .where(column.is_not(None), column != NO_LAYER)
        .where(versions.c.status != VersionStatus.DROPPED)
        .where(builders.c.id == versions.c.builder_id, builders.c.status != Status.DELETED)
    )


_COLUMNS = (versions.c.layer_key, versions.c.build_key)
_ALL_LAYERS = union(*(_layers(column) for column in _COLUMNS))
# Each by its index.
_USED_LAYERS = union(*(_layers(column).where(column.in_(bindparam("layers", expanding=True))) for column in _COLUMNS))
_LAYERS_OF_TENANT = union(*(_layers(column).where(builders.c.tenant_id == bindparam("tenant")) for column in _COLUMNS))


class Versions(Repository[Version]):
    _table, _record, _key = versions, Version, ("builder_id", "number")

    def add(self, value: Version) -> None:
        super().add(value)
        # The first version is the current one of a builder whose row is stored already; its resources never change.
        size = value.settings.resources.disk
        self._change(_RESERVE_DISK, builder=value.builder_id, which=value.number, size=size)

    def get(self, builder: BuilderId, number: int) -> Version | None:
        with damage_named(builder):
            row = self._connection.execute(_ONE, {"builder": builder, "number": number}).first()
            return None if row is None else _version(row)

    def require(self, builder: BuilderId, number: int) -> Version:
        """Return a version that is stored as long as its builder, such as the current one."""
        found = self.get(builder, number)
        assert found is not None, "a builder's current version and its candidate's are always stored"
        return found

    def list(self, builder: BuilderId) -> Sequence[Version]:
        """Return all versions, newest first."""
        with damage_named(builder):
            return [_version(row) for row in self._connection.execute(_NEWEST_FIRST, {"builder": builder}).all()]

    def shown(self, keys: Collection[tuple[BuilderId, int]]) -> Mapping[BuilderId, Version]:
        """Return the versions of these builders and numbers, by builder, in one query; without their ``stdin``."""
        if not keys:
            return {}
        found = read_each(self._connection, _SHOWN, {"keys": list(keys)}, _version, "builder_id")
        return {version.builder_id: version for version in found}

    def current_with_credential(self, tenant: TenantId, credential: str) -> Sequence[Version]:
        """Return the current versions of the tenant's live builders that get this credential."""
        has_it = _credentials.contains(json.dumps(credential), autoescape=True)
        current = _CURRENT_WITH_CREDENTIAL.where(has_it)
        return read_each(self._connection, current, {"tenant": tenant}, _version, "builder_id")

    def uses_bundle(self, bundle_hash: str) -> bool:
        """Return True if a version of an undeleted builder, or one with a backup, has this bundle.

        A dropped version has none.
        """
        return bool(self._connection.scalar(_USES_BUNDLE, {"bundle": bundle_hash}))

    def bundles_of_tenant(
        self, tenant_id: TenantId, builder: BuilderId | None = None, without: Collection[int] = ()
    ) -> Collection[str]:
        """Return the bundles that the tenant's live builders and backups have, each once.

        Those that only versions ``without`` of this builder have are left out.
        """
        values = {"tenant": tenant_id, "builder": builder or "", "without": list(without)}
        return frozenset(self._connection.scalars(_BUNDLES_OF_TENANT, values).all())

    def used_bundles(self, bundles: Collection[str]) -> frozenset[str]:
        """Return those among these bundles that are used, as ``uses_bundle`` says."""
        found = set[str]()
        for some in batches(list(bundles)):
            found.update(self._connection.scalars(_USED_BUNDLES, {"bundles": some}).all())
        return frozenset(found)

    def used_layers(self, layers: Collection[str]) -> Collection[str]:
        """Return those of these layers that a builder may still run, of any tenant."""
        found = set[str]()
        for some in batches(list(layers)):
            found.update(self._connection.scalars(_USED_LAYERS, {"layers": some}).all())
        return found

    def layers(self, tenant: TenantId | None = None) -> Collection[str]:
        """Return the layer keys of all versions that undeleted builders (of the tenant) may still run."""
        if tenant is None:
            return frozenset(self._connection.scalars(_ALL_LAYERS).all())
        return frozenset(self._connection.scalars(_LAYERS_OF_TENANT, {"tenant": tenant}).all())

    def _row(self, value: Version) -> dict[str, Any]:
        row = row_of(value)
        settings = row_of(row.pop("settings"))
        resources = row_of(settings.pop("resources"))
        texts = {name: dict(settings.pop(name)) for name in ("env", "env_file_values")}
        return {**row, **settings, **resources, **texts, "credentials": list(settings.pop("credentials"))}


def _version(row: Row[Any]) -> Version:
    values = row._asdict()  # a mapping would look up each name by itself
    resources = Resources(**{field.name: values.pop(field.name) for field in fields(Resources)})
    settings = {name: values.pop(name) for name in SETTING_NAMES if name != "resources"}
    settings["credentials"] = tuple(settings["credentials"])
    # Versions from before the column have none.
    settings["env_file_values"] = settings["env_file_values"] or {}
    return Version(**values, settings=VersionSettings(**settings, resources=resources))
