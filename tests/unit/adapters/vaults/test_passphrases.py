"""Sealing with a passphrase, at the cost of each guess that the product sets; other tests of backups lower it."""

from __future__ import annotations

import pytest

from builderd.adapters.vaults import sodium
from builderd.domain.errors import ValidationFailed

PASSPHRASE = "correct horse battery"


def test_each_guess_costs_256_mib_and_three_passes() -> None:
    assert (sodium._MEMORY, sodium._OPERATIONS) == (256 * 2**20, 3)


def test_the_same_passphrase_unseals_and_another_does_not() -> None:
    sealed = sodium.seal(b"key", PASSPHRASE, "backup")
    assert b"key" not in sealed
    assert sodium.unseal(sealed, PASSPHRASE, "backup") == b"key"
    with pytest.raises(ValidationFailed, match="passphrase"):
        sodium.unseal(sealed, PASSPHRASE + ".", "backup")
