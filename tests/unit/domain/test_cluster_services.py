"""Times of a take-over, and who may stand by for whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builderd.domain.cluster_services import (
    CLAIM_AFTER,
    FENCE_AFTER,
    GIVE_UP_AFTER,
    RENEWAL_SECONDS,
    TAKE_AFTER_CLAIM,
    WITNESS_SECONDS,
    ClusterService,
    unfit_reason,
)
from builderd.domain.database_lease import RENEW_INTERVAL

OWNER = ClusterService("1" * 16, "one", "/srv/a", "1.0", "disks", "aa", "/srv/a/vault.key", "SHA256:x", "/srv/a/ssh")
SAME = replace(OWNER, id="2" * 16, host_name="two", version="2.0", vault_key_file="/b/vault.key", ssh_key_file="/b/ssh")


def test_previews_have_ended_before_another_service_works() -> None:
    """A view of the owner from just before the claim moves its deadline for the last time; the fence needs 3 s."""
    assert TAKE_AFTER_CLAIM >= FENCE_AFTER + 3


def test_owner_that_is_well_is_confirmed_before_its_deadline_and_its_claim() -> None:
    assert min(CLAIM_AFTER, GIVE_UP_AFTER) >= RENEW_INTERVAL + RENEWAL_SECONDS + WITNESS_SECONDS
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
