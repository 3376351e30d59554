"""Kinds of records that background jobs wait for."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    #: Backups and restores.
    BACKUPS = "backups"
    DOMAINS = "domains"
    EVENTS = "events"
    #: QA reports that are wanted or being made.
    REPORTS = "reports"
    WEBHOOKS = "webhooks"
