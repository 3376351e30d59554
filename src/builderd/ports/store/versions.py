"""Versions in the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from builderd.domain.ids import BuilderId, TenantId
from builderd.domain.versions import Version


class Versions(Protocol):
    def add(self, version: Version) -> None: ...
    def get(self, builder: BuilderId, number: int) -> Version | None: ...
    def list(self, builder: BuilderId) -> Sequence[Version]:
        """Return all versions, newest first."""

    def shown(self, keys: Collection[tuple[BuilderId, int]]) -> Mapping[BuilderId, Version]:
        """Return the versions of these builders and numbers, by builder, in one query; without their ``stdin``."""

    def current_with_credential(self, tenant: TenantId, credential: str) -> Sequence[Version]:
        """Return the current versions of the tenant's live builders that get this credential."""

    def save(self, version: Version) -> None: ...
    def uses_bundle(self, bundle_hash: str) -> bool:
        """Return True if a version of an undeleted builder, or one with a backup, has this bundle.

        A dropped version has none.
        """

    def bundles_of_tenant(
        self, tenant_id: TenantId, builder: BuilderId | None = None, without: Collection[int] = ()
    ) -> Collection[str]:
        """Return the bundles that the tenant's live builders and backups have, each once.

        Those that only versions ``without`` of this builder have are left out.
        """

    def used_bundles(self, bundles: Collection[str]) -> Collection[str]:
        """Return those among these bundles that are used, as ``uses_bundle`` says."""

    def used_layers(self, layers: Collection[str]) -> Collection[str]:
        """Return those of these layers that a builder may still run, of any tenant."""

    def layers(self, tenant: TenantId | None = None) -> Collection[str]:
        """Return the layer keys of all versions that undeleted builders (of the tenant) may still run."""
