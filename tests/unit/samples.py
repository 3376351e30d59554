"""Values of the domain, with what a test does not care about filled in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from builderd.builders.model import Builder, Cause, JobType, Visibility
from builderd.core.ids import BuilderId, DiskId, SandboxId, TenantId
from builderd.sandboxes.model import Sandbox

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
TENANT = TenantId("10000000-0000-4000-8000-000000000000")
BUILDER = BuilderId("1a2b3c4d-0000-4000-8000-000000000000")
SANDBOX = SandboxId("00112233aabbccdd")
DISK = DiskId("5d000000-0000-4000-8000-000000000000")


def make_builder(**changes: Any) -> Builder:
    builder = Builder(
        id=BUILDER,
        tenant_id=TENANT,
        name="my-api",
        job_type=JobType.ALWAYS_ON,
        visibility=Visibility.PUBLIC,
        service_token="bds_secret",
        host="my-api-1a2b3c4d.localhost",
        version=1,
        disk=DISK,
        created_at=NOW,
        updated_at=NOW,
        cause=Cause("token test", "created by token test"),
    )
    return replace(builder, **changes)


def make_sandbox(**changes: Any) -> Sandbox:
    sandbox = Sandbox(id=SANDBOX, builder_id=BUILDER, version=1, generation=1, attempt=1, created_at=NOW, disk=DISK)
    return replace(sandbox, **changes)
