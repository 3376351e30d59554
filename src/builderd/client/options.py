"""Keyword arguments of calls that create and change builders, as type checkers see them. docs/api.md has the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

#: Content of a file: text, bytes, or the API's own object with ``content``, ``encoding`` and ``executable``.
FileContent = str | bytes | Mapping[str, Any]


class StoredCode(TypedDict):
    """Code of a kept version: ``bundle`` as ``Version`` has it, without the files of ``remove``.

    ``result`` is the ``bundle`` that has to come out; anything else is refused.
    """

    bundle: str
    remove: NotRequired[Sequence[str]]
    result: NotRequired[str]


class ResourceOptions(TypedDict, total=False):
    """``cpu`` in vCPU, ``memory`` and ``disk`` in GB (2^30 bytes)."""

    cpu: float
    memory: float
    disk: float


class SettingOptions(TypedDict, total=False):
    """Settings that change without new code. ``auto_stop_interval`` in minutes, 0: never."""

    env: Mapping[str, str]
    resources: ResourceOptions
    auto_stop_interval: int
    backup_interval_hours: int
    visibility: str
    credentials: Sequence[str]
    release: str


class VersionOptions(SettingOptions, total=False):
    """Settings of a version."""

    entrypoint: str
    port: int
    isolation: str
    skip_review: bool
    skip_qa: bool
    require_qa: bool
    install_scripts: bool
    build: str
    stdin: str
    start_timeout: int
    protocol: str
    root: str
    env_file: str


class BuilderOptions(VersionOptions, total=False):
    """Settings of a new builder. ``job_type``: ``always_on``, ``one_time`` or ``worker``."""

    job_type: str
