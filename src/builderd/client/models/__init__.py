"""Results of the API's calls.

A field that this release does not know is kept (``model_extra``), and a word such as a status is plain text: a newer
service breaks no client. A field that may be null may also be missing, as from an older service.
``tests/unit/client/test_models.py`` compares them with the service's own schemas.
"""

from __future__ import annotations

from builderd.client.models.account import (
    Attempt,
    Credential,
    CredentialUse,
    Delivery,
    Deployment,
    Health,
    NewToken,
    Part,
    Readiness,
    Spending,
    SpendingCap,
    Token,
    UploadPlace,
    UploadState,
    Webhook,
    WebhookWithSecret,
)
from builderd.client.models.base import Model
from builderd.client.models.builders import Backup, BuilderState, Cost, Resources, SshEnded, SshGrant, Stage, Version
from builderd.client.models.gates import Acceptance, Finding, Qa, QaCheck, QaScreenshot, Review
from builderd.client.models.watching import (
    Answers,
    Domain,
    Event,
    Execution,
    FileEntry,
    Lease,
    LogLine,
    Metrics,
    Present,
    RemovedBuilds,
    Step,
    TxtRecord,
)

__all__ = [
    "Acceptance",
    "Answers",
    "Attempt",
    "Backup",
    "BuilderState",
    "Cost",
    "Credential",
    "CredentialUse",
    "Delivery",
    "Deployment",
    "Domain",
    "Event",
    "Execution",
    "FileEntry",
    "Finding",
    "Health",
    "Lease",
    "LogLine",
    "Metrics",
    "Model",
    "NewToken",
    "Part",
    "Present",
    "Qa",
    "QaCheck",
    "QaScreenshot",
    "Readiness",
    "RemovedBuilds",
    "Resources",
    "Review",
    "Spending",
    "SpendingCap",
    "SshEnded",
    "SshGrant",
    "Stage",
    "Step",
    "Token",
    "TxtRecord",
    "UploadPlace",
    "UploadState",
    "Version",
    "Webhook",
    "WebhookWithSecret",
]
