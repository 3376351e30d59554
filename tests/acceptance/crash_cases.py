"""Cases of tests that kill the service beside a step, and what they begin with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest
from _pytest.mark.structures import ParameterSet
from tests.acceptance.live_service import LiveService

MOMENTS = ("begun", "done", "recorded")


def crash_cases(steps: Mapping[str, Sequence[str]], often: Collection[str]) -> list[ParameterSet]:
    """Return an operation and a point of each of its steps; those that are not tried ``often`` are slow.

    ``often`` names the ids of cases, such as ``create-Review.done``.
    """
    cases = [(name, f"{step}.{moment}") for name, found in steps.items() for step in found for moment in MOMENTS]
    named = {f"{name}-{fault}": (name, fault) for name, fault in cases}
    assert named.keys() >= set(often), "no step has such a point"
    return [
        pytest.param(*case, id=name, marks=[] if name in often else [pytest.mark.slow]) for name, case in named.items()
    ]


def delete_builders(service: LiveService) -> None:
    """Delete what a failed case left over: it is no concern of the next one."""
    for builder in service.call("GET", "/builders").json()["data"]:
        service.call("DELETE", f"/builders/{builder['uuid']}")
