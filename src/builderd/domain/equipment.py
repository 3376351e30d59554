"""What a machine has of what builderd needs, as ``builderd doctor`` tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Equipment:
    """``detail`` says what was found, ``cost`` what its lack means and how to mend it.

    Without what is ``vital`` the service cannot run.
    """

    name: str
    found: bool
    detail: str
    cost: str
    vital: bool
