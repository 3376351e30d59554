"""Times of a take-over, and who may stand by for whom."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from builderd.core.members import (
    CLAIM_AFTER,
    CLAIM_SECONDS,
    FENCE_AFTER,
    GIVE_UP_AFTER,
    RENEW_INTERVAL,
    RENEWAL_SECONDS,
    TAKE_AFTER_CLAIM,
    ClusterService,
    DatabaseLease,
    Instance,
    SeenService,
    describe_standby,
    unfit_reason,
)

OWNER = ClusterService("1" * 16, "one", "/srv/a", "1.0", "disks", "aa", "/srv/a/vault.key", "SHA256:x", "/srv/a/ssh")
LEASE = DatabaseLease(Instance("one", "one", "/srv/a", "a", "boot"), 3, datetime(2026, 11, 30, tzinfo=UTC), 1.0)
SAME = replace(OWNER, id="2" * 16, host_name="two", version="2.0", vault_key_file="/b/vault.key", ssh_key_file="/b/ssh")


def test_previews_have_ended_before_another_service_works() -> None:
    """A view of the owner from just before the claim moves its deadline for the last time; the fence needs 3 s."""
    assert TAKE_AFTER_CLAIM >= FENCE_AFTER + 3


def test_owner_that_is_well_is_confirmed_before_its_deadline_and_its_claim() -> None:
    assert min(CLAIM_AFTER, GIVE_UP_AFTER) >= RENEW_INTERVAL + RENEWAL_SECONDS + CLAIM_SECONDS
    assert 2 * RENEW_INTERVAL < FENCE_AFTER
    assert GIVE_UP_AFTER < FENCE_AFTER


def test_service_of_another_version_with_the_same_keys_and_disks_stands_by() -> None:
    assert unfit_reason(SAME, OWNER) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disks": "elsewhere"}, ["elsewhere", "incus.project"]),
        ({"vault_key": ""}, ["scp -p root@one:/srv/a/vault.key /b/vault.key"]),
        ({"ssh_key": "SHA256:y"}, ["scp -p root@one:/srv/a/ssh /b/ssh"]),
        ({"vault_key": "bb", "vault_key_file": ""}, ["give vault.key the key of one", "/srv/a/vault.key"]),
    ],
)
def test_reason_of_an_unfit_service_names_the_remedy(change: dict[str, str], words: list[str]) -> None:
    reason = unfit_reason(replace(SAME, **change), OWNER)
    assert reason is not None
    assert all(word in reason for word in words)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (SeenService(SAME, 1.0, 3), "takes over if the owner ends"),
        (SeenService(SAME, 1.0, 2), "would not take over: the service that works has not noted it"),
        (SeenService(SAME, 60.0, 3), "does not take over: it has ended, or its log"),
        (SeenService(replace(SAME, vault_key="bb"), 60.0, 3), "does not take over: its keys are not those of"),
    ],
)
def test_standby_is_described_with_what_keeps_it_from_its_work(seen: SeenService, words: str) -> None:
    assert words in describe_standby(seen, LEASE, OWNER)


def test_standby_of_an_owner_that_is_not_announced_is_described_by_itself() -> None:
    assert "takes over if the owner ends" in describe_standby(SeenService(SAME, 1.0, 3), LEASE, None)
