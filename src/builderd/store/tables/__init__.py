"""The tables as they are now. ``migrations/`` creates them; a test holds both to the same schema.

Columns have the names of the domain's fields, so that a row becomes its value by name. Importing this package adds
every table to ``metadata``.
"""

from __future__ import annotations

from builderd.store.tables.backups import DAMAGED, UNFINISHED, backup_keys, backups, restores
from builderd.store.tables.base import metadata
from builderd.store.tables.builders import (
    ACTIVE,
    BACKED_UP,
    CAPPED,
    LIVE,
    builders,
    due_since,
    leases,
    preview_links,
    ssh_grants,
)
from builderd.store.tables.domains import acme_accounts, domains, wildcard_certificates
from builderd.store.tables.events import deliveries, events, webhooks
from builderd.store.tables.gates import acceptances, qa_reports, qa_screenshots, reviews
from builderd.store.tables.ledger import OPEN, ledger, ledger_months, open_builds, tenant_months
from builderd.store.tables.requests import bundle_chunks, idempotency, stored_bundles, upload_chunks, uploads
from builderd.store.tables.sandboxes import build_logs, class_times, metrics, sandboxes
from builderd.store.tables.services import database_lease, services
from builderd.store.tables.tenants import credentials, sessions, sign_in_links, tenants, tokens
from builderd.store.tables.versions import versions

__all__ = [
    "ACTIVE",
    "BACKED_UP",
    "CAPPED",
    "DAMAGED",
    "LIVE",
    "OPEN",
    "UNFINISHED",
    "acceptances",
    "acme_accounts",
    "backup_keys",
    "backups",
    "build_logs",
    "builders",
    "bundle_chunks",
    "class_times",
    "credentials",
    "database_lease",
    "deliveries",
    "domains",
    "due_since",
    "events",
    "idempotency",
    "leases",
    "ledger",
    "ledger_months",
    "metadata",
    "metrics",
    "open_builds",
    "preview_links",
    "qa_reports",
    "qa_screenshots",
    "restores",
    "reviews",
    "sandboxes",
    "services",
    "sessions",
    "sign_in_links",
    "ssh_grants",
    "stored_bundles",
    "tenant_months",
    "tenants",
    "tokens",
    "upload_chunks",
    "uploads",
    "versions",
    "webhooks",
    "wildcard_certificates",
]
