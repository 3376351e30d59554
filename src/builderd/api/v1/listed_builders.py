"""Builders of a list as JSON text, written without a model of each: a page has up to a hundred."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from builderd.api.v1.presenters import shown_token
from builderd.schemas.v1.envelope import rfc3339
from builderd.services.builder_lists import ListEntry

_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))


def encode_listed(entry: ListEntry, *, with_token: bool) -> str:
    """Return the entry as ``present_builder`` shows the builder; its service token in full only ``with_token``."""
    builder, cost = entry.builder, entry.cost
    cpu, memory, disk = builder.resources.cpu, builder.resources.memory, builder.resources.disk
    shown: dict[str, Any] = {
        "uuid": builder.id,
        **builder.state._asdict(),
        "preview_url": entry.preview_url,
        "service_token": shown_token(builder.service_token, in_full=with_token),
        **builder.settings._asdict(),
        "resources": {"cpu": cpu, "memory": memory, "disk": disk},
        "needs_restart": entry.needs_restart,
        "review_passed": entry.review_passed,
        "cost": {
            "currency": cost.currency,
            "hourly_rate": float(cost.hourly_rate),
            "runtime_hours": float(cost.runtime_hours),
            "cost": float(cost.cost),
        },
        **{name: _time(at) for name, at in builder.times._asdict().items()},
        "last_backup_error": builder.backup_error,
        "member": builder.location,
    }
    documents = ",".join(f'"{name}":{text}' for name, text in builder.documents._asdict().items())
    return f"{_JSON.encode(shown)[:-1]},{documents}}}"


def _time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)
