"""What a machine has of what builderd needs, as ``builderd doctor`` tells it."""

from __future__ import annotations

from dataclasses import dataclass

#: Where programs are looked for, whatever the shell of the operator looks in: that of a plain ``su`` lacks the sbin.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """``detail`` says what was found, ``cost`` what its lack means and how to mend it.

    Without what is ``vital`` the service cannot run.
    """

    name: str
    found: bool
    detail: str
    cost: str
    vital: bool
