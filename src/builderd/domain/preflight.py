"""Preflight checks: the programs and kernel features that builderd needs, as ``builderd doctor`` reports them."""

from __future__ import annotations

from dataclasses import dataclass

#: Search path for programs, independent of the operator's shell: the one of a plain ``su`` lacks the sbin folders.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """Result of one check. ``detail`` says what was found, ``cost`` the consequence of a miss and its cure.

    The service cannot run while a ``vital`` check fails.
    """

    name: str
    found: bool
    detail: str
    cost: str
    vital: bool
