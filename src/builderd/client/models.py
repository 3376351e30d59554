"""Results of the API's calls: the service's response schemas, as a client reads them.

A field that this release does not know is kept (``model_extra``), and a word such as a status that it does not know is
plain text: a newer service breaks no client. A field that may be null may also be missing, as from an older service.
"""

from __future__ import annotations

import copy
import types
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from builderd.schemas.account import (
    Attempt,
    Credential,
    CredentialUse,
    DaySpending,
    DaysSpending,
    Delivery,
    Deployment,
    Ended,
    RevokedToken,
    Spending,
    SpendingCap,
    Token,
    Webhook,
    WebhookWithSecret,
)
from builderd.schemas.account import TokenWithSecret as NewToken
from builderd.schemas.builder_parts import (
    Backup,
    Domain,
    Execution,
    Lease,
    PortPreview,
    PreviewLink,
    RemovedBuilds,
    SshEnded,
    SshGrant,
    TxtRecord,
)
from builderd.schemas.builder_parts import PreviewLinkWithUrl as NewPreviewLink
from builderd.schemas.builders import Builder as BuilderState
from builderd.schemas.builders import Cost, ProcessState
from builderd.schemas.builders import ShownResources as Resources
from builderd.schemas.files import FileEntry, UploadPlace, UploadState
from builderd.schemas.monitoring import (
    Answers,
    ClassTimes,
    Event,
    Health,
    LogBucket,
    LogDensity,
    LogLine,
    LogVersion,
    Metrics,
    Part,
    Present,
    Readiness,
    ResponseTimes,
    Step,
)
from builderd.schemas.reviews import Acceptance, Finding, Qa, QaCheck, QaScreenshot, Review
from builderd.schemas.shape import View as Model
from builderd.schemas.versions import FileDifference, SettingDifference, Version, VersionDiff

__all__ = ["Acceptance", "Answers", "Attempt", "Backup", "BuilderState", "ClassTimes", "Cost", "Credential"]
__all__ += ["CredentialUse", "DaySpending", "DaysSpending", "Delivery", "Deployment", "Domain", "Ended", "Event"]
__all__ += ["Execution", "FileDifference", "FileEntry", "Finding", "Health", "Lease", "LogBucket", "LogDensity"]
__all__ += ["LogLine", "LogVersion", "Metrics", "Model", "NewPreviewLink", "NewToken", "Part", "PortPreview", "Present"]
__all__ += ["ProcessState"]
__all__ += ["PreviewLink", "Qa", "QaCheck", "QaScreenshot", "Readiness", "RemovedBuilds", "Resources", "ResponseTimes"]
__all__ += ["Review", "RevokedToken", "SettingDifference", "Spending", "SpendingCap", "SshEnded", "SshGrant", "Stage"]
__all__ += ["Step", "Token", "TxtRecord", "UploadPlace", "UploadState", "Version", "VersionDiff", "Webhook"]
__all__ += ["WebhookWithSecret"]

M = TypeVar("M", bound=BaseModel)


class Stage(Model):
    """Stage of a deployment that has ended: ``review``, ``install``, ``build``, ``release``, ``start`` or ``qa``."""

    stage: str
    seconds: float
    ok: bool


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True, serialize_by_alias=True)


@cache
def lenient(schema: type[M]) -> type[M]:
    """Return a subclass of a response schema that reads answers of newer and older services, as described above."""
    fields: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        changed = copy.copy(field)
        changed.annotation = _lenient_type(field.annotation)
        if field.is_required() and type(None) in get_args(field.annotation):
            changed.default = None
        fields[name] = (changed.annotation, changed)
    make: Any = create_model  # two bases of different types, which its signature does not allow
    made: type[M] = make(schema.__name__, __base__=(schema, _Lenient), __doc__=schema.__doc__, **fields)
    return made


def _lenient_type(kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return Annotated[_lenient_type(arguments[0]), *arguments[1:]]
    if origin is Literal:
        return str
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_lenient_type, arguments))]  # noqa: UP007 (the members are known at run time alone)
    if origin is not None:
        return origin[tuple(map(_lenient_type, arguments))]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return lenient(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return Annotated[kind | str, Field(union_mode="left_to_right")]
    return kind
