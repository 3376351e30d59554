"""Candidates: the version that is deployed beside the one that serves, and how it is given up."""

from __future__ import annotations

from dataclasses import replace

from builderd.domain.builders import Builder
from builderd.domain.errors import InvalidState
from builderd.domain.versions import VersionStatus
from builderd.ports.store import UnitOfWork


def without(builder: Builder) -> Builder:
    """The builder without its candidate, whose disk is used no more. The caller saves it."""
    disks = (builder.candidate_disk,) if builder.candidate_disk is not None else ()
    spare = (*builder.spare_disks, *disks)
    return replace(builder, candidate=None, candidate_disk=None, handover=None, spare_disks=spare)


def withdraw(uow: UnitOfWork, builder: Builder, why: str) -> Builder:
    """The same, and its version has failed for this reason, because something else is wanted by now.

    For whoever wants a builder stopped or deleted, whatever it is at. The caller saves it.
    """
    if builder.candidate is None:
        return replace(builder, handover=None)
    version = uow.versions.get(builder.id, builder.candidate)
    assert version is not None, "a builder's versions are always stored"
    if version.status is VersionStatus.PENDING:
        failed = replace(version, status=VersionStatus.FAILED, failure_code=InvalidState.code)
        uow.versions.save(replace(failed, status_reason=f"Version {version.number} was given up: {why}."))
    return without(builder)
