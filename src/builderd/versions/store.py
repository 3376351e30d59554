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
    Column("detected", document()),
    Column("processes", document()),
    Column("packages", document()),
    Column("released", Boolean, nullable=False, server_default=false()),
    Column("adopted_port", Integer),
    *setting_columns("entrypoint", "port", "isolation", "skip_review", "skip_qa", "require_qa"),
    CheckConstraint("number >= 1", name="number"),
    CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    CheckConstraint("cpu > 0 AND memory > 0 AND disk > 0", name="resources"),
)


#: The input of a job may have a megabyte, and no view shows it.
_SHOWN: Select[Any] = select(*(column for column in versions.c if column.name != "stdin"), literal("").label("stdin"))


def _uses_bundle(is_it: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(is_it, versions.c.status != VersionStatus.DROPPED).where(
        builders.c.id == versions.c.builder_id, builders.c.status != Status.DELETED
    ) | exists().where(is_it).where(
        backups.c.builder_id == versions.c.builder_id, backups.c.version == versions.c.number
    ).where(backups.c.status != BackupStatus.FAILED)


def _layers(column: ColumnElement[str]) -> Select[str]:
    return (
        select(column)
        .where(column.is_not(None), column != NO_LAYER)
        .where(versions.c.status != VersionStatus.DROPPED)
        .where(builders.c.id == versions.c.builder_id, builders.c.status != Status.DELETED)
    )


_COLUMNS = (versions.c.layer_key, versions.c.build_key)


class Versions(Repository[Version]):
    _table, _record, _key = versions, Version, ("builder_id", "number")

    def add(self, value: Version) -> None:
        super().add(value)
        # The first version is the current one of a builder whose row is stored already; its resources never change.
        size = value.settings.resources.disk
        is_it = builders.c.id == value.builder_id, builders.c.version == value.number
        reserve = update(builders).where(*is_it, builders.c.disk_released_at.is_(None))
        self._change(reserve, reserved_disk=size)

    def get(self, builder: BuilderId, number: int) -> Version | None:
        with damage_named(builder):
            is_it = versions.c.builder_id == builder, versions.c.number == number
            row = self._connection.execute(select(versions).where(*is_it)).first()
            return None if row is None else _version(row)

    def require(self, builder: BuilderId, number: int) -> Version:
        """Return a version that is stored as long as its builder, such as the current one."""
        found = self.get(builder, number)
        assert found is not None, "a builder's current version and its candidate's are always stored"
        return found

    def list(self, builder: BuilderId) -> Sequence[Version]:
        """Return all versions, newest first."""
        with damage_named(builder):
            own = select(versions).where(versions.c.builder_id == builder).order_by(versions.c.number.desc())
            return [_version(row) for row in self._connection.execute(own).all()]

    def shown(self, keys: Collection[tuple[BuilderId, int]]) -> Mapping[BuilderId, Version]:
        """Return the versions of these builders and numbers, by builder, in one query; without their ``stdin``."""
        if not keys:
            return {}
        shown = _SHOWN.where(tuple_(versions.c.builder_id, versions.c.number).in_(list(keys)))
        found = read_each(self._connection, shown, {}, _version, "builder_id")
        return {version.builder_id: version for version in found}

    def current_with_credential(self, tenant: TenantId, credential: str) -> Sequence[Version]:
        """Return the current versions of the tenant's live builders that get this credential."""
        is_current = builders.c.id == versions.c.builder_id, builders.c.version == versions.c.number
        # JSON of names; a name has no character that JSON escapes.
        has_it = cast(versions.c.credentials, Text).contains(json.dumps(credential), autoescape=True)
        current = select(versions).where(builders.c.tenant_id == tenant, text(LIVE), *is_current, has_it)
        return read_each(self._connection, current, {}, _version, "builder_id")

    def uses_bundle(self, bundle_hash: str) -> bool:
        """Return True if a version of an undeleted builder, or one with a backup, has this bundle.

        A dropped version has none.
        """
        return bool(self._connection.scalar(select(_uses_bundle(versions.c.bundle_hash == bundle_hash))))

    def bundles_of_tenant(
        self, tenant_id: TenantId, builder: BuilderId | None = None, without: Collection[int] = ()
    ) -> Collection[str]:
        """Return the bundles that the tenant's live builders and backups have, each once.

        Those that only versions ``without`` of this builder have are left out.
        """
        left_out = (versions.c.builder_id == (builder or "")) & versions.c.number.in_(list(without))
        of_version = (backups.c.builder_id == versions.c.builder_id) & (backups.c.version == versions.c.number)
        of_builders = (
            select(versions.c.bundle_hash)
            .join(builders, builders.c.id == versions.c.builder_id)
            .where(builders.c.tenant_id == tenant_id, builders.c.status != Status.DELETED)
            .where(versions.c.status != VersionStatus.DROPPED, ~left_out)
        )
        of_backups = (
            select(versions.c.bundle_hash)
            .join(backups, of_version)
            .where(backups.c.tenant_id == tenant_id, backups.c.status != BackupStatus.FAILED)
        )
        return frozenset(self._connection.scalars(union(of_builders, of_backups)).all())

    def used_bundles(self, bundles: Collection[str]) -> frozenset[str]:
        """Return those among these bundles that are used, as ``uses_bundle`` says."""
        found = set[str]()
        for some in batches(list(bundles)):
            named = select(versions.c.bundle_hash).where(versions.c.bundle_hash.in_(some)).distinct().cte("named")
            used = select(named.c.bundle_hash).where(_uses_bundle(versions.c.bundle_hash == named.c.bundle_hash))
            found.update(self._connection.scalars(used).all())
        return frozenset(found)

    def used_layers(self, layers: Collection[str]) -> Collection[str]:
        """Return those of these layers that a builder may still run, of any tenant."""
        found = set[str]()
        for some in batches(list(layers)):
            # Each by its index.
            used = union(*(_layers(column).where(column.in_(some)) for column in _COLUMNS))
            found.update(self._connection.scalars(used).all())
        return found

    def layers(self, tenant: TenantId | None = None) -> Collection[str]:
        """Return the layer keys of all versions that undeleted builders (of the tenant) may still run."""
        found = [_layers(column) for column in _COLUMNS]
        if tenant is not None:
            found = [layers.where(builders.c.tenant_id == tenant) for layers in found]
        return frozenset(self._connection.scalars(union(*found)).all())

    def _row(self, value: Version) -> dict[str, Any]:
        row = row_of(value)
        settings = row_of(row.pop("settings"))
        resources = row_of(settings.pop("resources"))
        texts = {name: dict(settings.pop(name)) for name in ("env", "env_file_values", "detected", "processes")}
        lists = {name: list(settings.pop(name)) for name in ("credentials", "packages")}
        return {**row, **settings, **resources, **texts, **lists}


def _version(row: Row[Any]) -> Version:
    values = row._asdict()  # a mapping would look up each name by itself
    resources = Resources(**{field.name: values.pop(field.name) for field in fields(Resources)})
    settings = {name: values.pop(name) for name in SETTING_NAMES if name != "resources"}
    settings["credentials"] = tuple(settings["credentials"])
    # Versions from before these columns have none.
    settings["packages"] = tuple(settings["packages"] or ())
    settings |= {name: settings[name] or {} for name in ("env_file_values", "detected", "processes")}
    return Version(**values, settings=VersionSettings(**settings, resources=resources))
