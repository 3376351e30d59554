"""Choice of the port to which a preview leads."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from builderd.core.ids import BuilderId
from builderd.reconciler.listeners import choose_port
from builderd.sandboxes.model import IPV6_ONLY, Listening
from builderd.versions.model import Version, VersionSettings

Sockets = list[tuple[str, int]]
FLASK, METRICS = ("127.0.0.1", 5000), ("0.0.0.0", 9100)


@pytest.mark.parametrize(
    ("sockets", "settled", "known", "adopted", "chosen"),
    [
        ([], True, 0, None, None),
        ([FLASK], True, 0, None, 5000),
        ([FLASK], False, 0, None, None),
        ([FLASK, ("::1", 5000)], True, 0, None, 5000),
        ([FLASK, METRICS], True, 0, None, None),
        ([FLASK, METRICS], False, 5000, None, 5000),
        ([FLASK, METRICS], False, 0, 9100, 9100),
        ([FLASK, ("0.0.0.0", 8000)], False, 5000, 5000, 8000),
        ([FLASK, ("127.0.0.1", 8000)], False, 0, None, 8000),
        ([("::", 3000), ("127.0.0.1", 9229), ("::", 24678), ("0.0.0.0", 5432)], True, 0, None, 3000),
        ([("0.0.0.0", 6379)], True, 0, None, None),
        ([("127.0.0.1", 45123)], True, 0, None, None),
        ([("0.0.0.0", 50051)], True, 0, None, 50051),
        ([("::1", 3000)], True, 0, None, None),
        ([(IPV6_ONLY, 8000)], True, 0, None, None),
    ],
)
@pytest.mark.parametrize("fixed", [False, True])
def test_choice(
    sockets: Sockets, settled: bool, known: int, adopted: int | None, chosen: int | None, fixed: bool
) -> None:
    settings = VersionSettings("run", fixed_port=fixed, known_port=known)
    version = Version(
        BuilderId("b"), 1, "", settings, "", datetime(2026, 1, 1, tzinfo=UTC), adopted_port=None if fixed else adopted
    )
    if fixed:
        chosen = 8000 if ("0.0.0.0", 8000) in sockets else None
    assert choose_port(Listening(frozenset(sockets)), version, is_settled=settled) == chosen
