"""Sentences that a page says once after a change. The URL names one by its key: no text from a URL is ever shown."""

from __future__ import annotations

from collections.abc import Mapping

MESSAGES: Mapping[str, str] = {
    "started": "It is being started.",
    "restarted": "It is being restarted. Visitors wait for about 2 s.",
    "stopped": "It is being stopped. Its files and settings stay.",
    "deleted": "It is being deleted.",
    "saved": "Saved.",
    "deployed": "The new version is being deployed; the old one serves on until it is up.",
    "rolled-back": "The old version is being deployed again, as a new version.",
    "accepted": "The finding is accepted. Start the builder, or deploy the same code again.",
    "backup": "The backup is being taken.",
    "restore": "The backup is being restored. What the builder has now is backed up first.",
    "restore-as": "A new builder is being made of the backup.",
    "backup-removed": "The backup is removed.",
    "qa": "The app is judged anew; the report comes in some seconds.",
    "webhook-deleted": "The webhook is gone.",
    "credential-saved": "The credential is stored. Builders that use it have it from their next start on.",
    "credential-deleted": "The credential is gone.",
    "session-ended": "The session has ended.",
    "renewed": "The service token is new; the old one has ended.",
    "written": "The file is written.",
    "file-deleted": "The file is deleted.",
}
